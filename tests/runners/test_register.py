"""POST /_electric/runners."""

import re

import pytest

from runners.models import Runner, RunnerLiveness, WakeStream

PATH = "/_electric/runners"
REQUIRED = {"id": "r1", "label": "Laptop"}
OPTIONAL = {
    "kind": "sandbox",
    "admin_status": "disabled",
    "sandbox_profiles": [
        {"name": "tight", "label": "Tight", "description": "no network", "remote": True},
        {"name": "loose", "label": "Loose"},
    ],
    "max_concurrent_claims": 3,
    "claim_lease_ms": 5_000,
}
WIRE_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")


def test_it_fills_in_what_is_left_out(alice):
    answer = alice.post(PATH, REQUIRED)

    assert answer.status == 201
    times = {answer.body["created_at"], answer.body["updated_at"]}
    assert all(map(WIRE_TIME.fullmatch, times))
    assert answer.body == {
        "id": "r1",
        "owner_principal": "/principal/user%3Aalice",
        "label": "Laptop",
        "kind": "local",
        "admin_status": "enabled",
        "wake_stream": "/runners/r1/wake",
        "sandbox_profiles": [],
        "claim_lease_ms": 30_000,
        "created_at": answer.body["created_at"],
        "updated_at": answer.body["updated_at"],
    }


def test_it_keeps_every_field(alice):
    alice.post(PATH, REQUIRED | OPTIONAL)

    kept = alice.get(f"{PATH}/r1").body
    assert {name: kept[name] for name in OPTIONAL} == OPTIONAL


def test_it_gives_the_lease_of_the_settings(alice, settings):
    settings.PULLWAKE_CLAIM_LEASE_MS = 7_000
    assert alice.post(PATH, REQUIRED).body["claim_lease_ms"] == 7_000


def test_it_is_idempotent(alice):
    first = alice.post(PATH, REQUIRED | OPTIONAL)
    second = alice.post(PATH, REQUIRED | OPTIONAL)

    assert (first.status, second.status) == (201, 201)
    ours = ("created_at", "updated_at")
    assert {k: v for k, v in first.body.items() if k not in ours} == {
        k: v for k, v in second.body.items() if k not in ours
    }
    assert second.body["created_at"] == first.body["created_at"]
    for rows in (Runner, RunnerLiveness, WakeStream):
        assert rows.objects.count() == 1


def test_it_updates_what_is_given_and_keeps_what_is_left_out(alice):
    alice.post(PATH, REQUIRED | OPTIONAL)
    again = alice.post(PATH, {"id": "r1", "label": "Renamed", "claim_lease_ms": 6_000}).body

    assert (again["label"], again["claim_lease_ms"]) == ("Renamed", 6_000)
    kept = {name: OPTIONAL[name] for name in OPTIONAL if name != "claim_lease_ms"}
    assert {name: again[name] for name in kept} == kept


def test_it_keeps_what_the_runner_reported(alice):
    alice.register()
    alice.post(f"{PATH}/r1/heartbeat", {"wake_stream_offset": "0000000000000000_0000000000000004"})

    again = alice.post(PATH, REQUIRED).body
    assert again["wake_stream_offset"] == "0000000000000000_0000000000000004"
    assert again["last_seen_at"]


def test_it_lifts_the_claim_limit_for_null(alice):
    alice.post(PATH, {**REQUIRED, "max_concurrent_claims": 3})
    assert (
        "max_concurrent_claims"
        not in alice.post(PATH, {**REQUIRED, "max_concurrent_claims": None}).body
    )


@pytest.mark.parametrize(
    "owner", ["user:alice", "/principal/user%3Aalice", "/principal/user:alice"]
)
def test_it_takes_the_callers_own_name_in_every_form(alice, owner):
    answer = alice.post(PATH, {**REQUIRED, "owner_principal": owner})
    assert (answer.status, answer.body["owner_principal"]) == (201, "/principal/user%3Aalice")


def test_it_refuses_another_owner(alice):
    answer = alice.post(PATH, {**REQUIRED, "owner_principal": "user:bob"})
    assert (answer.status, answer.error) == (403, "UNAUTHORIZED")
    assert not Runner.objects.exists()


def test_it_never_takes_over_anothers_runner(alice, bob):
    bob.register("r1", claim_lease_ms=9_000)
    answer = alice.post(PATH, {**REQUIRED, "claim_lease_ms": 1_000})

    assert (answer.status, answer.error) == (403, "UNAUTHORIZED")
    kept = bob.get(f"{PATH}/r1").body
    assert (kept["label"], kept["claim_lease_ms"]) == ("r1", 9_000)


@pytest.mark.parametrize("runner_id", ["r", "...", "A-Za.z0_9~:@+-", "x" * 128])
def test_it_takes_an_id_of_the_contracts_form(alice, runner_id):
    assert alice.post(PATH, {"id": runner_id, "label": "x"}).status == 201
    assert alice.get(f"{PATH}/{runner_id}").body["id"] == runner_id


@pytest.mark.parametrize(
    "runner_id",
    ["", ".", "..", "a/b", "a b", "a%2Fb", "ä", "r1\n", "x" * 129, "a\x00", 7, None, ["r1"]],
)
def test_it_refuses_a_bad_id(alice, runner_id):
    answer = alice.post(PATH, {"id": runner_id, "label": "x"})
    assert (answer.status, answer.error) == (400, "INVALID_REQUEST")
    assert not Runner.objects.exists()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_concurrent_claims", 1),
        ("max_concurrent_claims", 10_000),
        ("claim_lease_ms", 1_000),
        ("claim_lease_ms", 600_000),
        *(("kind", kind) for kind in ("local", "cloud-worker", "sandbox", "ci", "server")),
        ("admin_status", "enabled"),
        ("label", "x" * 256),
        ("sandbox_profiles", []),
    ],
)
def test_it_takes_what_is_within_bounds(alice, name, value):
    answer = alice.post(PATH, {**REQUIRED, name: value})
    assert (answer.status, answer.body[name]) == (201, value)


@pytest.mark.parametrize(
    ("name", "value", "path"),
    [
        ("max_concurrent_claims", 0, None),
        ("max_concurrent_claims", -1, None),
        ("max_concurrent_claims", 10_001, None),
        ("max_concurrent_claims", 1.5, None),
        ("max_concurrent_claims", "3", None),
        ("max_concurrent_claims", True, None),
        ("max_concurrent_claims", 2**70, None),
        ("claim_lease_ms", 999, None),
        ("claim_lease_ms", 600_001, None),
        ("claim_lease_ms", None, None),
        ("claim_lease_ms", 1e300, None),
        ("kind", "laptop", None),
        ("kind", None, None),
        ("admin_status", "paused", None),
        ("label", "", None),
        ("label", "x" * 257, None),
        ("label", 7, None),
        ("owner_principal", "alice", None),
        ("owner_principal", "/principal/local-desktop", None),
        ("owner_principal", "robot:alice", None),
        ("owner_principal", "", None),
        ("owner_principal", 7, None),
        ("wake_stream", "/runners/r2/wake", None),
        ("wake_stream", "", None),
        ("sandbox_profiles", {}, None),
        ("sandbox_profiles", ["tight"], "/sandbox_profiles/0"),
        ("sandbox_profiles", [{"name": "tight"}], "/sandbox_profiles/0/label"),
        ("sandbox_profiles", [{"name": "", "label": "x"}], "/sandbox_profiles/0/name"),
        (
            "sandbox_profiles",
            [{"name": "x", "label": "x"}, {"name": "x", "label": "x", "remote": 1}],
            "/sandbox_profiles/1/remote",
        ),
    ],
)
def test_it_names_what_is_out_of_bounds(alice, name, value, path):
    answer = alice.post(PATH, {**REQUIRED, name: value})
    assert (answer.status, answer.error) == (400, "INVALID_REQUEST")
    assert [each["path"] for each in answer.body["error"]["details"]] == [path or f"/{name}"]
    assert not Runner.objects.exists()


def test_it_names_every_bad_field_at_once(alice):
    answer = alice.post(PATH, {"id": "a/b", "kind": 1, "claim_lease_ms": 5})
    assert [each["path"] for each in answer.body["error"]["details"]] == [
        "/id",
        "/label",
        "/kind",
        "/claim_lease_ms",
    ]


def test_it_emits_the_unclaimed_wakes_again(alice):
    alice.register()
    alice.make_entity("/agent/e1")
    alice.make_entity("/agent/e2")
    alice.send("/agent/e1")
    alice.send("/agent/e2")
    alice.claim(event={"subscription_id": alice.wakes()[0]["subscription_id"]})
    before = alice.get("/runners/r1/wake?offset=-1")
    read = before.headers["Stream-Next-Offset"]
    assert alice.wakes(offset=read) == []

    alice.register()

    (again,) = alice.wakes(offset=read)
    assert (again["stream"], again["generation"]) == ("agent/e2/main", 1)
    assert len(alice.wakes()) == 1
