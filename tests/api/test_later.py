"""What agent apps know of and is not served yet: 404 in the one shape."""

import pytest

ENTITY = "/_electric/entities/agent/e1"


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", f"{ENTITY}/fork"),
        ("POST", f"{ENTITY}/attachments"),
        ("GET", f"{ENTITY}/attachments/a1"),
        ("GET", f"{ENTITY}/grants"),
        ("POST", f"{ENTITY}/grants"),
        ("DELETE", f"{ENTITY}/grants/g1"),
        ("GET", "/_electric/entity-types/agent/grants"),
        ("POST", f"{ENTITY}/collections/comments"),
        ("GET", "/_electric/electric/v1/shape"),
        ("POST", "/_electric/observations/entities/ensure-stream"),
        ("GET", "/_entities/0123456789abcdef"),
        ("POST", "/_electric/pg-sync/register"),
        ("PUT", "/_webhooks/github"),
        ("GET", "/_webhooks/github/main"),
        ("POST", "/_webhooks/github/bucket"),
        ("GET", "/__ds/jwks.json"),
        ("PUT", "/agent/e1"),
    ],
)
def test_what_is_not_served_is_404(alice, method, path):
    alice.make_entity(runner_id=None)
    body = {"some": "thing"} if method in ("POST", "PUT") else None
    answer = alice(method, path, body)
    assert (answer.status, answer.error) == (404, "NOT_FOUND")
