"""One module a state machine, and only it writes that machine's rows."""

import ast
import re
from pathlib import Path

import pytest

from tests.support import ROOT

WRITES = re.compile(
    r"(a?(update|create|save|delete|get_or_create|update_or_create|bulk_create|bulk_update)"
    r"|Update|Insert|SaveChanged|_raw_delete)"
)
CLAIMS = re.compile(r"\b(ConsumerClaim|claims?)\b")
STATES_AND_WAKES = re.compile(r"\b(DispatchState|dispatch_states?|states?|Wake|wakes?)\b")

PRODUCT = [
    path
    for app in ("config", "runners", "dispatch", "claims")
    for path in sorted((ROOT / app).rglob("*.py"))
    if "migrations" not in path.parts
    and "client" not in path.parts
    # Makes up a fleet's past by the million, where no server runs.
    and path.name != "generate_load_data.py"
]


def writes(source, rows):
    """Calls in this source that write rows which are named so; deletes by retention aside."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        if isinstance(node.func, ast.Attribute):
            verb, written = node.func.attr, node.func.value
        elif isinstance(node.func, ast.Name) and node.args:
            verb, written = node.func.id, node.args[0]
        else:
            continue
        if WRITES.fullmatch(verb) and rows.search(_receiver(written)):
            found.append(ast.unparse(node))
    return found


def _receiver(node):
    """``Model.objects.filter(...)`` as ``Model.objects.filter``: arguments name other rows."""
    if isinstance(node, ast.Call):
        return _receiver(node.func)
    if isinstance(node, ast.Attribute):
        return f"{_receiver(node.value)}.{node.attr}"
    return ast.unparse(node)


def written_by(rows):
    found = {str(path.relative_to(ROOT)): writes(path.read_text(), rows) for path in PRODUCT}
    # `wakes` is also the name of the module that writes them: calling it is not writing.
    return {
        path
        for path, calls in found.items()
        if any(not call.startswith(("wakes.save(", "lifecycle.")) for call in calls)
    }


def test_it_is_the_lifecycle_alone_that_writes_claims():
    assert written_by(CLAIMS) == {"claims/lifecycle.py"}


def test_it_is_dispatch_wakes_alone_that_writes_states_and_wakes():
    assert written_by(STATES_AND_WAKES) == {"dispatch/wakes.py"}


def test_no_module_writes_sql_of_its_own_but_wakes_to_number_wakes():
    raw = re.compile(r"\b(INSERT INTO|DELETE FROM|UPDATE\s+\w+\s+SET)\b")
    found = [(path, raw.findall(path.read_text())) for path in PRODUCT]
    # The ORM numbers no rows in an UPDATE, and wakes are this module's to write.
    assert [each for each in found if each[1]] == [
        (ROOT / "dispatch/wakes.py", ["UPDATE dispatch_wake\nSET"])
    ]


@pytest.mark.parametrize(
    "source",
    [
        "ConsumerClaim.objects.filter(pk=1).update(status='failed')",
        "ConsumerClaim(epoch=1).save()",
        "claim.save()",
        "entity.claims.active().update(status='failed')",
        "Update(lambda: ConsumerClaim.objects.filter(pk=Param('pk')), status='failed')",
        "Insert(ConsumerClaim)",
    ],
)
def test_it_would_notice_a_write(source):
    assert writes(source, CLAIMS) == [source]


def test_the_product_is_there():
    assert Path(ROOT / "claims/lifecycle.py") in PRODUCT
    assert len(PRODUCT) > 40
