"""GET /_electric/runners and /_electric/runners/:id."""

from datetime import timedelta

import pytest
from django.db.models import F

from runners.models import Runner

PATH = "/_electric/runners"


def ids(answer):
    assert answer.status == 200, answer
    return [each["id"] for each in answer.body]


def test_it_lists_the_callers_runners_newest_first(alice, bob):
    for name in ("b", "a", "c"):
        alice.register(name)
    bob.register("d")
    Runner.objects.filter(pk="b").update(created_at=F("created_at") + timedelta(hours=1))

    assert ids(alice.get(PATH)) == ["b", "c", "a"]
    assert ids(bob.get(PATH)) == ["d"]


def test_it_answers_an_empty_list_to_who_has_none(alice, bob):
    bob.register()
    assert alice.get(PATH).body == []


@pytest.mark.parametrize(
    "owner", ["user:alice", "/principal/user%253Aalice", "/principal/user:alice"]
)
def test_it_takes_the_callers_own_name_in_every_form(alice, owner):
    alice.register()
    assert ids(alice.get(f"{PATH}?owner_principal={owner}")) == ["r1"]


def test_it_refuses_to_list_anothers(alice):
    answer = alice.get(f"{PATH}?owner_principal=user:bob")
    assert (answer.status, answer.error) == (403, "UNAUTHORIZED")


@pytest.mark.parametrize("owner", ["alice", "", "/principal/local-desktop", "user:", "user:a%00"])
def test_it_refuses_what_is_no_principal(alice, owner):
    answer = alice.get(f"{PATH}?owner_principal={owner}")
    assert (answer.status, answer.error) == (400, "INVALID_REQUEST")
    assert [each["path"] for each in answer.body["error"]["details"]] == ["/owner_principal"]


def test_a_runner_in_the_list_is_the_runner_that_get_shows(alice):
    alice.register()
    alice.post(
        f"{PATH}/r1/heartbeat", {"wake_stream_offset": "-1", "diagnostics": {"status": "streaming"}}
    )
    assert alice.get(PATH).body == [alice.get(f"{PATH}/r1").body]


def test_get_shows_what_the_runner_reported(alice):
    registered = alice.register()
    reported = ("last_seen_at", "liveness_lease_expires_at", "wake_stream_offset", "diagnostics")
    assert not set(reported) & set(alice.get(f"{PATH}/r1").body)

    alice.post(
        f"{PATH}/r1/heartbeat",
        {
            "wake_stream_offset": "0000000000000000_0000000000000007",
            "diagnostics": {"status": "streaming"},
        },
    )

    runner = alice.get(f"{PATH}/r1").body
    assert set(runner) == set(registered) | set(reported)
    assert runner["wake_stream_offset"] == "0000000000000000_0000000000000007"
    assert runner["diagnostics"] == {"status": "streaming"}
    assert runner["last_seen_at"] < runner["liveness_lease_expires_at"]


def test_get_refuses_anothers_runner(alice, bob):
    bob.register()
    answer = alice.get(f"{PATH}/r1")
    assert (answer.status, answer.error) == (403, "UNAUTHORIZED")


@pytest.mark.parametrize("runner_id", ["r2", "..", "a%2Fb", "a%00b", "%FF", "x" * 129, "%20"])
def test_get_does_not_find_an_unknown_runner(alice, runner_id):
    alice.register()
    answer = alice.get(f"{PATH}/{runner_id}")
    assert (answer.status, answer.error) == (404, "NOT_FOUND")
