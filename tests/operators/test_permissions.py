"""Who sees which page and who may do what: nobody, viewer, operator, superuser."""

from datetime import timedelta

import pytest
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import Permission, User

from claims.models import ConsumerClaim, DeadLetter
from core.audit import NO_OPERATOR
from dispatch.models import DispatchState, Entity, EntityType
from runners import tokens
from runners.models import Runner
from tests.operators.conftest import World, person
from tests.operators.test_pages import PAGES

SECRET_PAGES = {"runners.accesstoken list", "token", "issue"}
"""For superusers alone."""

CLAIMS, RUNNERS, ENTITIES = "claims/consumerclaim", "runners/runner", "dispatch/entity"
TYPES = "dispatch/entitytype"
LETTERS = "claims/deadletter"

# Each verb: where it is, on what, with what, and the permission that it needs.
VERBS = {
    "expire": (CLAIMS, "orphaned", {}, "expire_consumerclaim"),
    "expire-and-move": (
        CLAIMS,
        "orphaned",
        {"target": "r2", "anyway": "on"},
        ("expire_consumerclaim", "move_entity"),
    ),
    "redrive": (LETTERS, "/agent/e1", {}, "redrive_deadletter"),
    "enable": (RUNNERS, "r2", {}, "enable_runner"),
    "disable": (RUNNERS, "r1", {}, "disable_runner"),
    "drain": (RUNNERS, "r1", {"target": "r2", "anyway": "on"}, ("disable_runner", "move_entity")),
    "undrain": (RUNNERS, "r2", {}, ("enable_runner", "move_entity")),
    "expire-claims": (RUNNERS, "r1", {}, "expire_consumerclaim"),
    "move-entities": (RUNNERS, "r1", {"target": "r2", "anyway": "on"}, "move_entity"),
    "delete": (RUNNERS, "r1", {"reason": "gone"}, "delete_runner"),
    "wake": (ENTITIES, "/agent/e2", {}, "wake_entity"),
    "send": (ENTITIES, "/agent/e1", {"payload": "Hi"}, "send_entity"),
    "move": (ENTITIES, "/agent/e4", {"target": "r2", "anyway": "on"}, "move_entity"),
    "pause": (ENTITIES, "/agent/e1", {}, "pause_entity"),
    "resume": (ENTITIES, "/agent/e5", {}, "resume_entity"),
    "stop": (ENTITIES, "/agent/e1", {}, "stop_entity"),
    "kill": (ENTITIES, "/agent/e1", {"reason": "runs amok"}, "kill_entity"),
    "transfer": (TYPES, "agent", {"registrar": "user:bob"}, "transfer_entitytype"),
    "retain": (TYPES, "agent", {"events": "1000"}, "retain_entitytype"),
    "remove": (TYPES, "agent", {"reason": "squatted"}, "remove_entitytype"),
    "revoke": ("runners/accesstoken", "token", {}, "revoke_accesstoken"),
    "revoke-and-fence": ("runners/accesstoken", "token", {}, "revoke_accesstoken"),
}


@pytest.fixture
def ready(world: World, monkeypatch: pytest.MonkeyPatch) -> World:
    """With a runner to enable and an entity to resume; what is revoked is so at once."""
    monkeypatch.setattr(tokens, "REMEMBERED", timedelta(0))
    world.api.post("/_electric/runners/r2/disable")
    world.api.make_entity("/agent/e5")
    world.api.signal("/agent/e5", "SIGSTOP")
    return world


def order(world: World, verb: str) -> tuple[str, dict[str, str]]:
    """The address of a verb, and the form that it is confirmed with."""
    where, which, form, _ = VERBS[verb]
    pk = {
        CLAIMS: lambda: world.row(world.orphaned).pk,
        RUNNERS: lambda: which,
        TYPES: lambda: which,
        LETTERS: lambda: DeadLetter.objects.get(entity__url=which).pk,
        ENTITIES: lambda: Entity.objects.get(url=which).pk,
        "runners/accesstoken": lambda: world.token.pk,
    }[where]()
    return f"/admin/{where}/do/{verb}/", {"pk": str(pk), **form}


def everything() -> list[object]:
    return [
        list(rows.order_by("pk").values())
        for rows in (
            Runner.objects.all(),
            ConsumerClaim.objects.all(),
            DispatchState.objects.all(),
            EntityType.objects.all(),
        )
    ]


@pytest.mark.parametrize(
    ("who", "open_", "secret"),
    [
        ("stranger", 302, 302),
        ("nobody", 403, 403),
        ("viewer", 200, 403),
        ("operator", 200, 403),
        ("superuser", 200, 200),
    ],
)
def test_each_page_is_shown_to_those_who_may_see_it(world, people, who, open_, secret):
    expected = {page: secret if page in SECRET_PAGES else open_ for page in PAGES}
    if who == "nobody":
        expected["overview"] = 200  # it says that there is nothing to see
    shown = {page: people[who].get(world.paths()[page]) for page in PAGES}
    assert {page: response.status_code for page, response in shown.items()} == expected
    for response in shown.values():
        login = response.headers.get("Location", "/admin/login/")
        assert login.startswith("/admin/login/")


def test_it_tells_nobody_any_figure(world, people):
    page = people["nobody"].get("/admin/").content.decode()
    assert "Nothing to see yet" in page
    assert 'id="overview"' not in page


@pytest.mark.parametrize("method", ["get", "post"])
@pytest.mark.parametrize(("who", "expected"), [("stranger", 302), ("nobody", 403), ("viewer", 403)])
def test_it_lets_nobody_act_who_may_not(ready, people, method, who, expected):
    before = everything()
    for verb in VERBS:
        assert getattr(people[who], method)(*order(ready, verb)).status_code == expected, verb
    assert everything() == before
    assert not LogEntry.objects.exclude(user__username=NO_OPERATOR).exists()


def test_a_refusal_is_a_line(ready, people, caplog):
    caplog.set_level("INFO", "pullwake.audit")
    path, form = order(ready, "kill")
    people["viewer"].post(path, form, headers={"X-Request-Id": "proxy-7"})
    people["viewer"].get("/admin/runners/accesstoken/")
    killed, looked = (each for each in caplog.records if each.name == "pullwake.audit")
    assert killed.getMessage() == looked.getMessage() == "refused"
    facts = ("principal", "verb", "target", "answer", "address", "request_id")
    assert [getattr(killed, name) for name in facts] == [
        "system:operator:viewer",
        "kill",
        path.partition("?")[0],
        403,
        "127.0.0.1",
        "proxy-7",
    ]
    assert looked.verb == "runners_accesstoken_changelist"


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("who", ["operator", "superuser"])
def test_it_lets_those_act_who_may(ready, people, verb, who):
    path, form = order(ready, verb)
    allowed = not verb.startswith("revoke") or who == "superuser"
    assert people[who].get(path, form).status_code == (200 if allowed else 403)
    assert people[who].post(path, form).status_code == (302 if allowed else 403)
    assert LogEntry.objects.filter(user__username=who).exists() == allowed


NEEDED = [
    (verb, permission)
    for verb, (_, _, _, needed) in VERBS.items()
    for permission in ((needed,) if isinstance(needed, str) else needed)
]


@pytest.mark.parametrize(("verb", "needed"), NEEDED)
def test_each_verb_has_its_permission(ready, people, verb, needed):
    """Who may see all, and do all but this, may not do this."""
    path, form = order(ready, verb)
    person("almost", group="operators")
    almost = User.objects.get(username="almost")
    almost.user_permissions.set(Permission.objects.exclude(codename=needed))
    almost.groups.clear()
    people["nobody"].force_login(almost)
    assert people["nobody"].post(path, form).status_code == 403
    almost.user_permissions.add(Permission.objects.get(codename=needed))
    assert people["nobody"].post(path, form).status_code == 302


def test_it_offers_viewers_no_button(world, people):
    DispatchState.objects.filter(entity__url="/agent/e2").update(failures=3)
    for page in ("overview", "runner", "claim", "entity", "entity type"):
        shown = {who: people[who].get(world.paths()[page]).content.decode() for who in people}
        assert "/do/" not in shown["viewer"]
        assert "/do/" in shown["operator"]


def test_no_form_makes_or_deletes_rows(world, people):
    for path in (
        "runners/runner/add/",
        "runners/accesstoken/add/",
        "claims/consumerclaim/add/",
        "dispatch/entity/add/",
        "dispatch/dispatchstate/add/",
        "dispatch/wake/add/",
        "dispatch/entitytype/add/",
        "admin/logentry/add/",
        "runners/runner/r1/delete/",
        "dispatch/entitytype/agent/delete/",
    ):
        for method in ("get", "post"):
            response = getattr(people["superuser"], method)(f"/admin/{path}")
            assert response.status_code == 403, path


def test_no_form_edits_rows(world, people):
    before = everything()
    for page in ("runner", "claim", "entity", "wake", "token", "entity type"):
        form = {"status": "released", "id": "x"}
        assert people["superuser"].post(world.paths()[page], form).status_code == 405, page
    assert everything() == before
