"""Logins stop nobody else, and guessing is over after a few passwords."""

import ipaddress
import socket
import subprocess
import sys
import threading
from collections import Counter, deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any

import httpx2
import pytest
from django.contrib.auth.hashers import PBKDF2PasswordHasher
from django.contrib.auth.models import User
from django.core.files.uploadedfile import SimpleUploadedFile
from django.http import HttpRequest, HttpResponse
from django.test import Client

from config.serving import passwords
from config.serving.passwords import Hasher, LoginTurns
from core.addresses import client_address
from tests.support import ROOT, Server, wait_until

HTML = {"Accept": "text/html"}

BESIDE = """
from gevent import monkey; monkey.patch_all()
import gevent
import django; django.setup()
from config.serving.passwords import Hasher

hashing = gevent.spawn(Hasher().encode, "secret", "salt", 300_000)
turns = 0
while not hashing.dead:
    gevent.sleep(0)
    turns += 1
print(hashing.value, turns)
"""


@pytest.mark.server
def test_the_loop_goes_on_while_a_password_is_hashed():
    done = subprocess.run(
        [sys.executable, "-c", BESIDE], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    hashed, turns = done.stdout.split()
    assert hashed == PBKDF2PasswordHasher().encode("secret", "salt", 300_000)
    assert int(turns) > 100


def test_its_hashes_are_djangos():
    assert Hasher().encode("secret", "salt", 10) == PBKDF2PasswordHasher().encode(
        "secret", "salt", 10
    )


# --- Guessing -------------------------------------------------------------------------------------


def log_in(client, password, username="carol", **facts):
    return client.post("/admin/login/", {"username": username, "password": password}, **facts)


@pytest.fixture
def carol(db, settings, monkeypatch):
    monkeypatch.setattr(passwords, "REST_S", 0)
    settings.PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]  # for speed
    return User.objects.create_user("carol", password="right", is_staff=True)


def test_who_guesses_is_locked_out_and_told_so(carol):
    guesser = Client(headers=HTML)
    assert [log_in(guesser, f"guess {n}").status_code for n in range(5)] == [200] * 4 + [429]
    refused = log_in(guesser, "right")
    assert (refused.status_code, refused.headers["Retry-After"]) == (429, "900")
    assert "Too many passwords were tried" in refused.content.decode()
    assert guesser.get("/admin/").status_code == 302


def test_nobody_elsewhere_is_locked_out(carol):
    guesser = Client()
    for n in range(6):
        log_in(guesser, f"guess {n}")
    assert log_in(Client(REMOTE_ADDR="192.0.2.7"), "right").status_code == 302


def test_a_login_begins_the_count_anew(carol):
    for _ in range(3):
        client = Client()
        assert [log_in(client, f"guess {n}").status_code for n in range(4)] == [200] * 4
        assert log_in(client, "right").status_code == 302


def test_each_is_a_line_in_the_log_without_the_password(carol, caplog):
    caplog.set_level("INFO", "pullwake.audit")
    log_in(Client(), "wrong-one")
    log_in(Client(), "right")
    lines = [record.__dict__ for record in caplog.records if record.name == "pullwake.audit"]
    assert [(each["verb"], each["answer"], each["principal"]) for each in lines] == [
        ("log in", "refused", "system:operator:carol"),
        ("log in", "ok", "system:operator:carol"),
    ]
    assert {each["address"] for each in lines} == {"127.0.0.1"}
    assert "wrong-one" not in str(lines)


def test_of_many_at_once_only_the_first_few_are_looked_at(server: Server):
    def guess(client: httpx2.Client) -> int:
        csrf = client.cookies["csrftoken"]
        form = {"username": "carol", "password": "x", "csrfmiddlewaretoken": csrf}
        return client.post("/admin/login/", data=form).status_code

    clients = [httpx2.Client(base_url=server.url, timeout=60) for _ in range(8)]
    for client in clients:
        client.get("/admin/login/")
    with ThreadPoolExecutor(8) as threads:
        answers = Counter(threads.map(guess, clients))
    for client in clients:
        client.close()
    assert answers == {200: 4, 429: 4}
    looked_at = "SELECT sum(failures_since_start) FROM axes_accessattempt"
    assert server.database.execute(looked_at) == [(5,)]


class Clock:
    """A clock that only stands in for others, and for sleeping."""

    now = 100.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def test_a_process_rests_after_each_login(rf, monkeypatch):
    clock = Clock()
    monkeypatch.setattr(passwords, "time", clock)
    began = []

    def handle(request: HttpRequest) -> HttpResponse:
        began.append(clock.now)
        clock.now += 0.25
        return HttpResponse()

    handled = LoginTurns(handle)
    for _ in range(3):
        handled(rf.post("/admin/login/"))
    assert began == [100.0, 100.75, 101.5]
    handled(rf.get("/admin/login/"))  # only a page: it waits for nobody
    assert began[3] == 101.75


class Line:
    """A lock that those who wait get in the order they came, as gevent's; and who are they."""

    def __init__(self) -> None:
        self.guard = threading.Lock()
        self.waiting: deque[threading.Event] = deque()

    def acquire(self, timeout: float) -> bool:
        turn = threading.Event()
        with self.guard:
            self.waiting.append(turn)
            self.waiting[0].set()
        return turn.wait(timeout)

    def release(self) -> None:
        with self.guard:
            self.waiting.popleft()
            if self.waiting:
                self.waiting[0].set()


def test_who_tries_many_at_once_stands_once_in_the_line(rf, monkeypatch):
    monkeypatch.setattr(passwords, "REST_S", 0)
    handled = []
    go = threading.Semaphore(0)

    def handle(request: HttpRequest) -> HttpResponse:
        handled.append(request.META["REMOTE_ADDR"])
        go.acquire()
        return HttpResponse()

    turns: Any = LoginTurns(handle)
    turns._turn, turns._of_address = Line(), [Line(), Line()]
    monkeypatch.setattr(passwords, "hash", len, raising=False)  # their lines: 1 and 0
    with ThreadPoolExecutor(4) as threads:
        try:
            for address in ("192.0.2.1", "192.0.2.1", "192.0.2.1", "192.0.2.10"):
                threads.submit(turns, rf.post("/admin/login/", REMOTE_ADDR=address))
                wait_until(lambda: handled)
            lines = (turns._turn.waiting, turns._of_address[1].waiting)
            wait_until(lambda: [len(each) for each in lines] == [2, 3])
        finally:
            go.release(4)
    assert handled == ["192.0.2.1", "192.0.2.10", "192.0.2.1", "192.0.2.1"]


def test_a_login_whose_turn_does_not_come_is_told_to_come_back(rf, monkeypatch):
    monkeypatch.setattr(passwords, "PATIENCE_S", 0.001)
    turns = LoginTurns(lambda request: HttpResponse())
    turns._turn.acquire()
    for _ in range(2):  # and it left its address's line
        refused = turns(rf.post("/admin/login/"))
        assert (refused.status_code, refused.headers["Retry-After"]) == (429, "60")
        assert b"Too many logins wait" in refused.content
    turns._turn.release()
    assert turns(rf.post("/admin/login/")).status_code == 200


def test_a_login_that_drips_holds_up_no_other(server: Server):
    with httpx2.Client(base_url=server.url, timeout=60) as client:
        client.get("/admin/login/")
        csrf = client.cookies["csrftoken"]
        head = (
            "POST /admin/login/ HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 1000\r\n"
            f"Content-Type: application/x-www-form-urlencoded\r\nCookie: csrftoken={csrf}\r\n\r\n"
        )
        with closing(socket.create_connection(("127.0.0.1", server.port))) as peer:
            peer.sendall(f"{head}username=".encode())
            for _ in range(6):
                assert client.get("/livez").status_code == 200  # the server has read that much
            form = {"username": "dora", "password": "x", "csrfmiddlewaretoken": csrf}
            assert client.post("/admin/login/", data=form).status_code == 200


def test_nobody_fills_the_disk_with_the_files_of_a_form(db, settings):
    settings.PULLWAKE_MAX_BODY_BYTES = 1000
    file = SimpleUploadedFile("much", b"x" * 1000)
    refused = Client().post("/admin/login/", {"username": "carol", "much": file})
    assert (refused.status_code, refused.json()["error"]["code"]) == (413, "PAYLOAD_TOO_LARGE")


def test_a_session_that_no_database_can_look_up_is_none(db):
    assert Client().get("/admin/", HTTP_COOKIE=r'sessionid="\000aaaaaaaaaa"').status_code == 302


# --- Addresses ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("peer", "forwarded", "address"),
    [
        ("192.0.2.1", "198.51.100.1", "192.0.2.1"),
        ("10.0.0.1", "198.51.100.1", "198.51.100.1"),
        ("10.0.0.1", "203.0.113.9, 198.51.100.1", "198.51.100.1"),
        ("10.0.0.1", "198.51.100.1, 10.0.0.2", "198.51.100.1"),
        ("10.0.0.1", "made up", "10.0.0.1"),
        ("10.0.0.1", None, "10.0.0.1"),
        ("10.0.0.1", "fe80::1%eth0 forged", "fe80::1"),
        ("fe80::1%eth0", None, "fe80::1"),
        ("", None, ""),
    ],
)
def test_the_callers_address_is_what_a_trusted_proxy_says(rf, settings, peer, forwarded, address):
    settings.PULLWAKE_TRUSTED_PROXIES = [ipaddress.ip_network("10.0.0.0/8")]
    headers = {} if forwarded is None else {"X-Forwarded-For": forwarded}
    assert client_address(rf.get("/", headers=headers, REMOTE_ADDR=peer)) == address
