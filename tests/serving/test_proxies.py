"""Behind the proxies of deploy/ events come at once, and no caller says who they are."""

import httpx2
import msgspec
import pytest

from tests.proxies import caddy, haproxy, nginx
from tests.serving.conftest import make_idle
from tests.serving.test_sse import until_up_to_date

pytestmark = [pytest.mark.proxy, pytest.mark.parametrize("proxy", [haproxy, nginx, caddy])]

FORGED = {"Electric-Principal": "user:alice", "X-Forwarded-For": "203.0.113.9"}


def test_a_trusted_proxy_passes_on_no_claim_of_the_callers(servers, tmp_path, proxy):
    server = servers.lend(
        PULLWAKE_MODE="production",
        PULLWAKE_PUBLIC_URL="http://wake.example",
        PULLWAKE_TRUSTED_PROXIES="127.0.0.1",
    )
    with proxy([server] * 3, tmp_path) as url:
        path = f"/_electric/runners/{proxy.__name__}"
        answer = httpx2.get(f"{url}{path}", headers=FORGED)
    assert answer.status_code == 401
    lines = [msgspec.json.decode(each) for each in server.log.read_bytes().splitlines()]
    (refused,) = [each for each in lines if each.get("target") == path]
    assert (refused["principal"], refused["address"]) == ("unknown", "127.0.0.1")


@pytest.mark.once
def test_events_pass_a_proxy_as_they_come(server, tmp_path, proxy):
    api = make_idle(server.client(None))
    with proxy([server] * 3, tmp_path) as url:
        path = f"{url}/runners/r1/wake?offset=-1&live=sse"
        with httpx2.stream("GET", path) as answer:
            lines = answer.iter_lines()
            assert [name for name, _ in until_up_to_date(lines)] == ["control"]
            api.send()
            (_, events), _ = until_up_to_date(lines)
    assert [event["generation"] for event in events] == [1]
