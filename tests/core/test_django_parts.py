"""Each part of Django that `core.prepared.django_parts` uses is there and does what it did."""

from datetime import UTC, datetime, timedelta
from unittest import mock

import django
import pytest
from django.db import IntegrityError, connection, models, transaction
from django.db.models import F, Q
from django.db.models.functions import Now
from django.test.utils import CaptureQueriesContext

from claims.models import ConsumerClaim
from core.prepared import django_parts as parts
from core.prepared.statements import execute
from dispatch.models import DispatchState, Wake
from runners.models import AccessToken, Runner, RunnerLiveness
from tests.factories import RunnerFactory

pytestmark = pytest.mark.django_db

IS_POSTGRES = connection.vendor == "postgresql"


@pytest.fixture
def seen():
    """A query with all that a shape describes: an annotation, columns, and a related row."""
    return Runner.objects.select_related("liveness").annotate(at=Now(), twice=F("id"))


def run(compiler):
    sql, params = compiler.as_sql()
    with connection.cursor() as cursor:
        cursor.execute(sql, params)
        return cursor.fetchall()


def unlogged(sql, params=(), *, answers=False):
    """As in production, where nobody looks on."""
    with mock.patch.object(connection, "force_debug_cursor", False):
        return execute(connection, sql, params, answers=answers)


def test_execute_answers():
    assert unlogged("SELECT 4711", answers=True) == (1 if IS_POSTGRES else -1, [(4711,)])
    assert unlogged("DELETE FROM runners_runner") == (0, [])


def test_execute_translates_errors():
    with pytest.raises(IntegrityError), transaction.atomic():
        unlogged("INSERT INTO runners_runner (id) VALUES (NULL)")


def test_execute_runs_nothing_in_a_broken_transaction():
    with transaction.atomic():
        transaction.set_rollback(True)
        with pytest.raises(transaction.TransactionManagementError):
            unlogged("SELECT 4711")


def test_execute_logs_queries_and_asks_those_who_look_on():
    asked = []

    def look(run, sql, params, many, context):
        asked.append(sql)
        return run(sql, params, many, context)

    with CaptureQueriesContext(connection) as captured:
        execute(connection, "SELECT 4711", [], answers=True)
    with connection.execute_wrapper(look):
        unlogged("SELECT 4712")
    assert [query["sql"] for query in captured.captured_queries] == ["SELECT 4711"]
    assert asked == ["SELECT 4712"]


VALUES = {
    "CharField": "a",
    "TextField": "a",
    "BooleanField": True,
    "JSONField": {"a": [1]},
    "DateTimeField": datetime(2026, 5, 19, 11, 1, 11, 631_000, tzinfo=UTC),
    "DurationField": timedelta(seconds=30),
    "GenericIPAddressField": "::1",
    "ForeignKey": 1,
    "OneToOneField": 1,
}
FIELDS = [
    field
    for model in (Runner, RunnerLiveness, Wake, DispatchState, ConsumerClaim, AccessToken)
    for field in model._meta.concrete_fields
]


@pytest.mark.parametrize("field", FIELDS, ids=str)
def test_values_are_stored_as_djangos_fields_store_them(field):
    value = VALUES.get(field.get_internal_type(), 1)
    store = parts.stored_by(field, connection)
    sent = value if store is None else store(value)
    djangos = field.get_db_prep_save(value, connection)
    if field.is_relation and isinstance(field.target_field, models.CharField):
        djangos = value
    assert type(sent) is type(djangos)
    # Those of JSON are wrapped for psycopg, and not comparable.
    assert getattr(sent, "obj", sent) == getattr(djangos, "obj", djangos)


def test_a_compiler_tells_what_it_selects(seen):
    compiler = parts.select_compiler(seen, connection)
    compiler.as_sql()
    selected = [column for column, _, _ in compiler.select]
    assert all(isinstance(each, parts.Col) for each in selected if hasattr(each, "target"))
    assert [each.target.attname for each in selected if hasattr(each, "target")][:2] == [
        "id",
        "owner_principal",
    ]


def test_klass_info_tells_the_model_and_its_columns(seen):
    compiler = parts.select_compiler(seen, connection)
    compiler.as_sql()
    info = compiler.klass_info
    assert info["model"] is Runner
    fields = info["select_fields"]
    assert fields == list(range(fields[0], fields[-1] + 1))
    assert len(fields) == len(Runner._meta.concrete_fields)


def test_annotation_col_map_tells_the_places_of_annotations(seen):
    RunnerFactory.create(id="r1")
    compiler = parts.select_compiler(seen, connection)
    (row,) = run(compiler)
    places = compiler.annotation_col_map
    assert set(places) == {"at", "twice"}
    assert row[places["twice"]] == "r1"
    plain = parts.select_compiler(Runner.objects.all(), connection)
    plain.as_sql()
    assert not plain.annotation_col_map


def test_converters_are_those_of_the_columns():
    field = RunnerLiveness._meta.get_field("diagnostics")
    compiler = parts.select_compiler(RunnerLiveness.objects.all(), connection)
    converters = compiler.get_converters([parts.Col("runners_runnerliveness", field)])
    (row,) = compiler.apply_converters([('{"status": "streaming"}',)], converters)
    assert list(row) == [{"status": "streaming"}]


def test_related_populators_populate_an_instance(seen):
    RunnerFactory.create(id="r1", online=True)
    compiler = parts.select_compiler(seen, connection)
    (row,) = run(compiler)
    shape = parts.shape_of(seen, compiler, connection.alias)
    runner = Runner(id="r1")
    (populator,) = shape.related
    populator.populate(row, runner)
    assert "liveness" in runner._state.fields_cache
    assert runner.liveness.pk == "r1"
    assert runner.liveness._state.fields_cache == {}


def test_a_row_is_related_one_way():
    runner, seen = Runner(id="r1"), RunnerLiveness()
    runner.liveness = seen
    parts.relate(seen, "runner", runner)
    assert seen.runner_id == "r1"
    assert seen.runner is runner
    assert runner._state.fields_cache == {}


def test_a_queryset_has_a_fetch_mode_from_django_6_1_on(seen):
    assert hasattr(seen, "_fetch_mode") == (django.VERSION >= (6, 1))


def test_an_update_query_takes_its_values():
    runner = RunnerFactory.create(id="r1")
    rows = Runner.objects.annotate(twice=F("id")).filter(Q(twice="r1"))
    compiler = parts.update_compiler(rows, {"label": "new"}, connection)
    sql, params = compiler.as_sql()
    assert sql.startswith("UPDATE ")
    with connection.cursor() as cursor:
        cursor.execute(sql, params)
        assert cursor.rowcount == 1
    runner.refresh_from_db()
    assert runner.label == "new"


def test_an_insert_query_answers_the_key():
    """Its values are taken as they are, without a field's own conversion."""
    key = Wake._meta.pk
    fields = [field for field in Wake._meta.concrete_fields if field is not key]
    row = type("Row", (), {field.attname: models.Value(field.attname) for field in fields})
    compiler = parts.insert_compiler(Wake, fields, row, key, connection)
    ((sql, params),) = compiler.as_sql()
    assert sql.startswith("INSERT INTO ")
    assert sql.rpartition(" RETURNING ")[2] == '"dispatch_wake"."id"'
    assert list(params) == [field.attname for field in fields]


def test_a_col_is_a_column_of_a_table():
    field = Runner._meta.get_field("label")
    compiler = parts.select_compiler(Runner.objects.all(), connection)
    sql, params = compiler.compile(parts.Col("runners_runner", field))
    assert (sql, list(params)) == ('"runners_runner"."label"', [])
