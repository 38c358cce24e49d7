"""Checks by schemas stay off the event loop, and end."""

from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest

from tests.support import wait_until


def _doubling(levels):
    step = {f"a{n}": {"allOf": [{"$ref": f"#/$defs/a{n + 1}"}] * 2} for n in range(levels)}
    return {"$ref": "#/$defs/a0", "$defs": {**step, f"a{levels}": {"type": "integer"}}}


@pytest.mark.parametrize(("connections", "checks"), [(16, 3), (2, 12)])
def test_a_check_that_would_not_end_keeps_nobody_waiting(servers, connections, checks):
    server = servers.lend(PULLWAKE_DB_POOL=connections)
    api = server.client()
    api.register()
    body = {"name": "agent", "description": "", "inbox_schemas": {"slow": _doubling(40)}}
    assert api.post("/_electric/entity-types", body).status == 201
    api.make_entity()

    def send(_):
        message = {"payload": 1, "type": "slow"}
        return server.client().post("/_electric/entities/agent/e1/send", message).status

    with ThreadPoolExecutor(checks) as pool:
        slow = [pool.submit(send, n) for n in range(checks)]
        during = 0
        while not all(each.done() for each in slow):
            assert api.post("/_electric/runners/r1/heartbeat", {}).status == 200
            during += 1
        # Who waits too long behind the others is told to try again.
        assert {each.result() for each in slow} <= {400, 503}
    # Held up for a check's time, there would be one between any two of them.
    assert during > 20


@pytest.mark.anew
def test_what_checks_ends_with_its_server(mortal):
    api = mortal.client()
    body = {"name": "agent", "description": "", "creation_schema": {"type": "object"}}
    assert api.post("/_electric/entity-types", body).status == 201
    (checker,) = (
        each
        for each in psutil.Process(mortal.process.pid).children(recursive=True)
        if "schema_checker" in " ".join(each.cmdline())
    )
    mortal.stop()
    wait_until(lambda: not checker.is_running() or checker.status() == psutil.STATUS_ZOMBIE)
