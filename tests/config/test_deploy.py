"""What deploy/ has is taken by the tools of its trade; tests/proxies.py runs more of it."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from core.version import VERSION
from tests.proxies import found
from tests.support import ROOT

DEPLOY = ROOT / "deploy"
UNITS = sorted((DEPLOY / "systemd").iterdir())


def tool(program: str) -> str:
    """Where it is, also beside this Python; skips the test without."""
    path = found(program) or shutil.which(program, path=str(Path(sys.executable).parent))
    if path is None:
        pytest.skip(f"needs {program}")
    return path


def run(*command: object) -> str:
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def manifests() -> str:
    """What Kubernetes is given."""
    return run(tool("kubectl"), "kustomize", DEPLOY / "kubernetes")


def test_manifests_are_what_kubernetes_takes(manifests, tmp_path):
    path = tmp_path / "manifests.yaml"
    path.write_text(manifests)
    run(tool("kubernetes-validate"), "--strict", path)


def test_the_image_is_that_of_this_version(manifests):
    assert re.findall(r"image: \S+:(\S+)", manifests) == [VERSION]


def test_a_pod_may_stop_for_longer_than_it_drains(manifests):
    by_kind = {each["kind"]: each for each in yaml.safe_load_all(manifests)}
    pod = by_kind["Deployment"]["spec"]["template"]["spec"]
    drain_s = int(by_kind["ConfigMap"]["data"]["PULLWAKE_DRAIN_S"])
    # As long as gunicorn's master gives its workers.
    assert pod["terminationGracePeriodSeconds"] > drain_s + 6
    (server,) = pod["containers"]
    noticed_s = (
        server["readinessProbe"]["periodSeconds"] * server["readinessProbe"]["failureThreshold"]
    )
    assert noticed_s < drain_s


def test_units_are_what_systemd_takes(tmp_path):
    for unit in UNITS:
        text = unit.read_text().replace("/opt/pullwake/.venv/bin/python", sys.executable)
        (tmp_path / unit.name).write_text(text)
    run(tool("systemd-analyze"), "verify", *(tmp_path / unit.name for unit in UNITS))


def test_the_caddyfile_is_what_caddy_takes():
    run(tool("caddy"), "validate", "--adapter", "caddyfile", "--config", DEPLOY / "Caddyfile")


def test_dockerfiles_are_what_hadolint_takes():
    run(tool("hadolint"), ROOT / "Dockerfile", *DEPLOY.glob("*.Dockerfile"))


def test_the_database_proxy_is_what_haproxy_takes(tmp_path):
    # Names that are nobody's are refused.
    recipe = (DEPLOY / "haproxy-database.cfg").read_text()
    path = tmp_path / "haproxy.cfg"
    path.write_text(re.sub(r"[\w-]+\.example:", "127.0.0.1:", recipe))
    run(tool("haproxy"), "-c", "-f", path)
