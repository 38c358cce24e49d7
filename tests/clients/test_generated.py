"""Clients made of the OpenAPI schema go round the whole loop: the programs of docs/api.md."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import ROOT, Server, block

pytestmark = [pytest.mark.clients, pytest.mark.slow]

HERE = Path(__file__).parent
TOOLS = Path(f"{sys.prefix}-clients/bin")
TYPESCRIPT = [
    "--strict",
    "--noUncheckedIndexedAccess",
    "--module",
    "nodenext",
    "--target",
    "es2022",
]


def run(folder: Path, *command: str, **env: str) -> str:
    """What a command prints; the test fails unless it succeeds."""
    path = f"{TOOLS}:{folder}/node_modules/.bin:{os.environ['PATH']}"
    done = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, "PATH": path, **env},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the clients are made: with the schema, and what npm installs from the lock file."""
    made = tmp_path_factory.mktemp("clients")
    for name in ("package.json", "package-lock.json", ".npmrc", ".spectral.yaml"):
        shutil.copy(HERE / name, made)
    command = [sys.executable, "manage.py", "spectacular", "--format", "openapi-json"]
    run(ROOT, *command, "--file", str(made / "openapi.json"))
    run(made, "npm", "ci", "--ignore-scripts")
    return made


@pytest.fixture
def goes_round(server: Server, folder: Path):
    """Check that a program does what the page says, as one with an access token."""
    issued = subprocess.run(
        [sys.executable, "manage.py", "create_token", "user:alice"],
        cwd=ROOT,
        env=server.env,
        capture_output=True,
        text=True,
        check=True,
    )
    token = re.findall(r"\S{30,}", issued.stdout)[-1]

    def check(*command: str) -> None:
        printed = run(folder, *command, PULLWAKE_URL=server.url, PULLWAKE_TOKEN=token)
        said, done = printed.splitlines()
        assert json.loads(said) == "Hello" if said.startswith('"') else said == "Hello"
        assert json.loads(done) == {"entity_cleared": True, "next_wake": False}

    return check


def test_the_validators_have_nothing_to_say(folder: Path):
    run(folder, "openapi-spec-validator", "openapi.json")
    run(folder, "spectral", "lint", "--fail-severity=hint", "openapi.json")


def test_curl(folder: Path, goes_round):
    (folder / "loop.sh").write_text(block("api.md", "curl"))
    goes_round("bash", "loop.sh")


def test_typescript(folder: Path, goes_round):
    run(folder, "bash", "-euc", block("api.md", "make-typescript"))
    (folder / "loop.ts").write_text(block("api.md", "typescript"))
    run(folder, "tsc", *TYPESCRIPT, "loop.ts")
    goes_round("node", "loop.js")


def test_go(folder: Path, goes_round):
    run(folder, "bash", "-euc", block("api.md", "make-go"))
    made = folder / "loop"
    made.mkdir(exist_ok=True)
    (made / "main.go").write_text(block("api.md", "go"))
    (made / "go.mod").write_text(
        "module example.com/agents/loop\n\ngo 1.23\n\n"
        "require example.com/agents/pullwake v0.0.0\n\n"
        "replace example.com/agents/pullwake => ../pullwake\n"
    )
    run(made, "go", "vet", "./...", GOPROXY="off", GOFLAGS="-mod=mod")
    run(made, "go", "build", "-o", "../loop.bin", ".", GOPROXY="off", GOFLAGS="-mod=mod")
    goes_round("./loop.bin")


def test_python(folder: Path, goes_round):
    run(folder, "bash", "-euc", block("api.md", "make-python"))
    (folder / "loop.py").write_text(block("api.md", "python"))
    goes_round(str(TOOLS / "python"), "loop.py")
