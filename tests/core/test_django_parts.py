"""Each part of Django that `core.prepared.django_parts` uses is there and does what it did."""

import django
import pytest
from django.db import IntegrityError, connection, models, transaction
from django.db.models import F, Q
from django.db.models.functions import Now
from django.test.utils import CaptureQueriesContext

from core.prepared import django_parts as parts
from dispatch.models import Wake
from runners.models import Runner, RunnerLiveness
from tests.factories import RunnerFactory

pytestmark = pytest.mark.django_db


@pytest.fixture
def seen():
    """A query with all that a shape describes: an annotation, columns, and a related row."""
    return Runner.objects.select_related("liveness").annotate(at=Now(), twice=F("id"))


def run(compiler):
    sql, params = compiler.as_sql()
    with connection.cursor() as cursor:
        cursor.execute(sql, params)
        return cursor.fetchall()


def test_prepare_cursor_translates_errors():
    """And it is what `connection.cursor()` wraps the driver's cursors with."""
    with connection.cursor() as ours:
        raw = connection.connection.cursor()
        wrapped = parts.wrap_cursor(connection, raw)
        assert type(wrapped) is type(ours)
    with wrapped, pytest.raises(IntegrityError), transaction.atomic():
        wrapped.execute("INSERT INTO runners_runner (id) VALUES (NULL)")


def test_prepare_cursor_logs_queries():
    raw = connection.connection.cursor()
    with (
        CaptureQueriesContext(connection) as captured,
        parts.wrap_cursor(connection, raw) as cursor,
    ):
        cursor.execute("SELECT 4711")
    assert [query["sql"] for query in captured.captured_queries] == ["SELECT 4711"]


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
