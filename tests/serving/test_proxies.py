"""Behind the proxies of deploy/ no caller says who they are, or from where they call."""

import httpx2
import msgspec
import pytest

from tests.proxies import haproxy, nginx

pytestmark = pytest.mark.proxy

FORGED = {"Electric-Principal": "user:alice", "X-Forwarded-For": "203.0.113.9"}


@pytest.mark.parametrize("proxy", [haproxy, nginx])
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
