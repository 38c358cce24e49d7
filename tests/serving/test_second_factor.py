"""The second factor of operators with a password, on a real server: PULLWAKE_TOTP."""

import base64
import re
import secrets
import time
from collections.abc import Callable, Iterator

import httpx2
import pytest
from django_otp.oath import TOTP

from tests.support import Server, Servers

Browser = httpx2.Client


@pytest.fixture
def server(servers: Servers) -> Server:
    """A server whose operators may have one."""
    return servers.lend(PULLWAKE_TOTP="optional")


@pytest.fixture
def strict(servers: Servers) -> Server:
    """One whose operators must."""
    return servers.lend(PULLWAKE_TOTP="required")


@pytest.fixture
def browser() -> Iterator[Callable[[Server], Browser]]:
    """A browser without a login."""
    opened = []

    def opens(server: Server) -> Browser:
        headers = {"Accept": "text/html"}
        opened.append(Browser(base_url=server.url, headers=headers, follow_redirects=True))
        return opened[-1]

    yield opens
    for each in opened:
        each.close()


PASSWORD = "correct horse battery"


def person(server: Server) -> str:
    """Somebody new, with a password."""
    name = f"olga-{secrets.token_hex(4)}"
    made = (
        "from django.contrib.auth.models import User; "
        f"User.objects.create_superuser({name!r}, password={PASSWORD!r})"
    )
    done = server.database.manage("shell", "--no-imports", "-c", made)
    assert done.returncode == 0, done.stderr
    return name


def post(client: Browser, path: str, **sent: str) -> httpx2.Response:
    token = client.cookies.get("csrftoken") or ""
    return client.post(path, data={"csrfmiddlewaretoken": token, **sent})


def log_in(client: Browser, name: str, code: str = "", password: str = PASSWORD) -> httpx2.Response:
    client.get("/admin/login/?next=/admin/")
    sent = {"username": name, "password": password, "code": code}
    return post(client, "/admin/login/?next=/admin/", **sent)


class Authenticator:
    """The app on somebody's phone; no code of it is good twice, so each is of a later time.

    A code is of now or of the next half minute, never of one that may be over when it is looked at.
    """

    def __init__(self, page: str) -> None:
        found = re.search(r"<code>([A-Z2-7]{32})</code>", page)
        assert found is not None, page
        self._key = base64.b32decode(found[1])
        self._step = 0

    def code(self) -> str:
        self._step = max(self._step + 1, int(time.time()) // 30)
        totp = TOTP(self._key)
        totp.time = self._step * 30
        return f"{totp.token():06d}"


def turn_on(client: Browser) -> tuple[Authenticator, list[str]]:
    """The app, and the recovery codes."""
    app = Authenticator(client.get("/admin/second-factor/").text)
    shown = post(client, "/admin/second-factor/", code=app.code(), do="on").text
    codes = re.findall(r"^(?:.*<code>)?(r[a-z2-7]{8})$", shown, re.MULTILINE)
    assert len(codes) == 10, shown
    return app, codes


def test_it_is_turned_on_and_asked_for_from_then_on(browser, server):
    name, first, second = person(server), browser(server), browser(server)
    assert log_in(first, name).url.path == "/admin/"
    assert "data:image/svg+xml" in first.get("/admin/second-factor/").text
    app, _ = turn_on(first)
    assert first.get("/admin/runners/runner/").status_code == 200, "its own session goes on"
    assert "code of your authenticator" in log_in(second, name).text
    code = app.code()
    assert log_in(second, name, code).url.path == "/admin/"
    third = browser(server)
    assert "wrong, or was used" in log_in(third, name, code).text
    assert third.get("/admin/").url.path == "/admin/login/"


def test_a_wrong_password_with_a_right_code_tells_nothing(browser, server):
    name, first, second = person(server), browser(server), browser(server)
    log_in(first, name)
    app, _ = turn_on(first)
    refused = log_in(second, name, app.code(), password="another").text
    assert "code of your authenticator" not in refused
    assert "enter the correct" in refused


def test_a_recovery_code_is_good_once(browser, server):
    name, first = person(server), browser(server)
    log_in(first, name)
    _, codes = turn_on(first)
    assert log_in(browser(server), name, codes[0]).url.path == "/admin/"
    assert "wrong, or was used" in log_in(browser(server), name, codes[0]).text


def test_a_session_from_before_ends(browser, server):
    name, first, second = person(server), browser(server), browser(server)
    log_in(first, name)
    log_in(second, name)
    turn_on(first)
    assert second.get("/admin/runners/runner/").url.path == "/admin/login/"


def test_wrong_codes_are_guesses_as_wrong_passwords_are(browser, server):
    name, first, thief = person(server), browser(server), browser(server)
    log_in(first, name)
    app, _ = turn_on(first)
    tried = [log_in(thief, name, "000000").status_code for _ in range(5)]
    assert tried[:4] == [200] * 4
    assert log_in(thief, name, app.code()).status_code == 429
    assert server.log.read_text().count(f"operator:{name}") >= 6


def test_it_is_turned_off_with_a_code_alone(browser, server):
    name, first = person(server), browser(server)
    log_in(first, name)
    app, _ = turn_on(first)
    refused = post(first, "/admin/second-factor/", code="rno-such-x", do="off")
    assert "wrong, or was used" in refused.text
    post(first, "/admin/second-factor/", code=app.code(), do="off")
    assert log_in(browser(server), name).url.path == "/admin/"


def test_new_recovery_codes_end_the_former(browser, server):
    name, first = person(server), browser(server)
    log_in(first, name)
    app, codes = turn_on(first)
    shown = post(first, "/admin/second-factor/", code=app.code(), do="codes").text
    assert "Your recovery codes" in shown
    assert codes[0] not in shown
    assert "wrong, or was used" in log_in(browser(server), name, codes[0]).text


def test_where_it_is_required_nothing_goes_before_it(browser, strict):
    name, first = person(strict), browser(strict)
    assert log_in(first, name).url.path == "/admin/second-factor/"
    assert first.get("/admin/runners/runner/").url.path == "/admin/second-factor/"
    app, _ = turn_on(first)
    assert first.get("/admin/runners/runner/").status_code == 200
    shown = post(first, "/admin/second-factor/", code=app.code(), do="off").text
    assert "Turn it off" not in shown
    assert "code of your authenticator" in log_in(browser(strict), name).text


def test_the_one_time_login_of_development_mode_needs_none(browser, strict):
    found = re.search(r"http://\S+(/admin/login-once/\S+)", strict.log.read_text())
    assert found is not None
    assert browser(strict).get(found[1]).url.path == "/admin/"


def test_who_lost_it_gets_in_again_by_the_command(browser, server):
    name, first = person(server), browser(server)
    log_in(first, name)
    turn_on(first)
    remove = ("remove_second_factor", name)
    refused = server.database.manage(*remove)
    assert "PULLWAKE_TOTP is off" in refused.stderr
    done = server.database.manage(*remove, PULLWAKE_TOTP="optional")
    assert f"of {name} is gone" in done.stdout, done.stderr
    assert log_in(browser(server), name).url.path == "/admin/"


def test_no_page_shows_the_secrets(browser, server):
    name, first = person(server), browser(server)
    log_in(first, name)
    assert first.get("/admin/otp_totp/totpdevice/").status_code == 404
