"""Processes that need not import Django and its kin again: most of what starting one costs.

A *nursery* is a process that has imported the packages of `PACKAGES`, nothing of Pullwake and no
settings, and forks whenever it is asked to. A fork is a child of the test process and dies with it,
has an environment, files and a session of its own, and does what ``python manage.py …`` or
``python -m gunicorn …`` does: it reads the settings and sets Django up, as ever. That takes a
quarter of the CPU that a new interpreter takes.

gunicorn's nursery has gevent's patches, which have to come before Django. Its master is left what
it lives by (`LATER`); its workers patch that, too, as ever.

Tests of how processes begin and end start real ones, by subprocess. So does everything where there
is no Linux, as nothing else gives a process children that another has forked.
"""

import atexit
import contextlib
import ctypes
import gc
import importlib
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from functools import partial
from pathlib import Path
from typing import IO, Any, NoReturn

ROOT = Path(__file__).resolve().parent.parent

PACKAGES = frozenset(
    {
        *("asgiref", "axes", "corsheaders", "cronsim", "django", "drf_spectacular", "environ"),
        *("gevent", "gunicorn", "jsonschema_rs", "msgspec", "psycopg", "psycopg_binary"),
        *("psycopg_pool", "requests", "rest_framework", "sqlparse", "structlog", "unfold"),
        *("whitenoise", "yaml"),
    }
)
"""What is imported beforehand; not prometheus_client, whose import reads the environment."""

LATER = ("os", "signal", "queue")
"""What gevent patches in workers alone."""

MOST = 2**17
"""Bytes of a message to a nursery."""

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36


class Process:
    """A forked process, with what tests use of `subprocess.Popen`."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Its status; None while it runs."""
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def wait(self, timeout: float = 60.0) -> int:
        """Its status once it has ended; raises `subprocess.TimeoutExpired`."""
        deadline = time.monotonic() + timeout
        while (status := self.poll()) is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout)
            time.sleep(0.005)
        return status

    def send_signal(self, number: int) -> None:
        """Send it a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        """SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL."""
        self.send_signal(signal.SIGKILL)


class Nursery:
    """Forks what it is asked to; begins when it is first asked, and ends with this process."""

    _one_at_a_time = threading.Lock()
    """Whose orphans are taken is a matter of the whole process."""

    def __init__(self, *arguments: str) -> None:
        self._arguments = arguments
        self._socket: socket.socket | None = None

    def fork(self, request: dict[str, Any], *files: int) -> Process:
        """A process that does what is asked, with its standard input, output, error, and more."""
        libc = ctypes.CDLL(None)
        with self._one_at_a_time:
            asking = self._socket = self._socket or self._begin()
            # An orphan goes to the nearest ancestor that takes orphans: here, and not to init.
            libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
            try:
                socket.send_fds(asking, [json.dumps(request).encode()], files)
                pid = asking.recv(100)
            finally:
                libc.prctl(PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)
        assert pid, "the nursery has ended"
        return Process(int(pid))

    def _begin(self) -> socket.socket:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            process = subprocess.Popen(
                [sys.executable, __file__, *self._arguments],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                cwd=ROOT,
                # Nothing that is imported finds settings.
                env={k: v for k, v in os.environ.items() if k != "DJANGO_SETTINGS_MODULE"},
            )
        # Of those packages, what this process has of them: about what a server has, too.
        ours.send(json.dumps([*sys.modules]).encode())

        def end() -> None:
            ours.close()
            process.wait()

        atexit.register(end)
        return ours


COMMANDS = Nursery()
SERVERS = Nursery("--patched")


def manage(arguments: tuple[str, ...], env: dict[str, str]) -> "subprocess.CompletedProcess[str]":
    """Run ``manage.py`` to its end."""
    argv = ["manage.py", *arguments]
    if sys.platform != "linux":
        return subprocess.run(
            [sys.executable, *argv], cwd=ROOT, env=env, capture_output=True, text=True, timeout=60
        )
    with (
        open(os.devnull, "rb") as null,
        tempfile.TemporaryFile("w+") as output,
        tempfile.TemporaryFile("w+") as errors,
    ):
        process = COMMANDS.fork(
            {"argv": argv, "env": env}, null.fileno(), output.fileno(), errors.fileno()
        )
        try:
            status = process.wait()
        finally:
            process.kill()
        output.seek(0)
        errors.seek(0)
        return subprocess.CompletedProcess(argv, status, output.read(), errors.read())


def start(
    arguments: tuple[str, ...], env: dict[str, str], log: IO[bytes]
) -> "Process | subprocess.Popen[bytes]":
    """Start ``manage.py``, which says all in the log."""
    argv = ["manage.py", *arguments]
    if sys.platform != "linux":
        return subprocess.Popen(
            [sys.executable, *argv],
            cwd=ROOT,
            env=env,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    with open(os.devnull, "rb") as null:
        files = null.fileno(), log.fileno(), log.fileno()
        return COMMANDS.fork({"argv": argv, "env": env}, *files)


def serve(
    arguments: tuple[str, ...], env: dict[str, str], log: IO[bytes]
) -> "Process | subprocess.Popen[bytes]":
    """``manage.py serve``, up to where it executes gunicorn, and that: the process returned.

    Where it fails before, that is the process that failed.
    """
    if sys.platform != "linux":
        return start(("serve", *arguments), env, log)
    with open(os.devnull, "rb") as null, tempfile.TemporaryFile() as executes:
        files = null.fileno(), log.fileno(), log.fileno()
        request = {"argv": ["manage.py", "serve", *arguments], "env": env}
        process = COMMANDS.fork(request, *files, executes.fileno())
        if process.wait() == 0:
            executes.seek(0)
            process = SERVERS.fork(json.load(executes), *files)
        return process


# --- In a nursery -----------------------------------------------------------------------------


def _tend(*, patched: bool) -> list[str]:
    """Import, and fork until the test process has ended; in each fork returns what it is to run."""
    # Ctrl-C reaches all, and the tests end what they have started.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = os.getppid()
    sys.path[0] = str(ROOT)
    asked = socket.socket(fileno=os.dup(0))
    if patched:
        from gevent import monkey

        monkey.patch_all(**dict.fromkeys(LATER, False))
        # Of the workers, which do so as ever.
        warnings.filterwarnings("ignore", "Patching more than once", monkey.MonkeyPatchWarning)
    for name in json.loads(asked.recv(MOST)):
        if name.split(".")[0] in PACKAGES:
            # What needs settings is left to the forks.
            with contextlib.suppress(Exception):
                importlib.import_module(name)
    # What these read as they are imported is for each fork to set.
    assert not {"config", "core", "prometheus_client"}.intersection(sys.modules)
    gc.collect()
    gc.freeze()
    while True:
        request, files, *_ = socket.recv_fds(asked, MOST, 4)
        if not request:
            os._exit(0)
        reading, writing = os.pipe()
        between = os.fork()
        if between == 0:
            pid = os.fork()
            if pid == 0:
                for each in (asked.fileno(), reading, writing):
                    os.close(each)
                _die_with(parent)
                return _begin(files, **json.loads(request))
            os.write(writing, str(pid).encode())
            os._exit(0)
        # Then the fork is an orphan, and so the test process's.
        os.waitpid(between, 0)
        asked.send(os.read(reading, 100))
        for each in (reading, writing, *files):
            os.close(each)


def _die_with(parent: int) -> None:
    """Become its orphan, and be killed when it ends, however it does: nothing outlives the tests.

    A server's workers see that their master is gone.
    """
    deadline = time.monotonic() + 60
    while os.getppid() != parent:
        # Whoever asked for a fork that comes this late has ended.
        if time.monotonic() > deadline:
            os._exit(1)
        os.sched_yield()  # to sleep would start gevent's loop
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


def _begin(files: list[int], argv: list[str], env: dict[str, str]) -> list[str]:
    """Have one's own files, environment and session, as a new process has them."""
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.clear()
    os.environ.update(env)
    tempfile.tempdir = None
    for number, file in enumerate(files[:3]):
        os.dup2(file, number)
    for file in files[:3]:
        os.close(file)
    if files[3:]:
        os.execv = partial(_hand_over, files[3])
    return argv


def _hand_over(file: int, _path: str, argv: list[str]) -> NoReturn:
    """In place of os.execv: the other nursery forks what is executed."""
    os.write(file, json.dumps({"argv": argv[1:], "env": dict(os.environ)}).encode())
    os._exit(0)


def _run(argv: list[str]) -> None:
    """What Python does with these arguments."""
    module = argv[1] if argv[0] == "-m" else ""
    sys.argv = argv[1:] if module else argv
    if module:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(argv[0], run_name="__main__")


if __name__ == "__main__":
    _run(_tend(patched="--patched" in sys.argv))
