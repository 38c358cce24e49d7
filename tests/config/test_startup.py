"""What stops a start is one sentence with a hint, whichever library it comes from."""

from contextlib import closing
from pathlib import Path

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.db import DatabaseError
from django.db.utils import ConnectionHandler

from config.environment import Environment
from config.serving import error_reports, startup

pytestmark = pytest.mark.once  # each names its own database, or none


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("sqlite:///{file}", "file is not a database; name another file, or restore a backup"),
        ("postgres://127.0.0.1:1/n?bogus=1", 'connection option "bogus"; mend what follows the ?'),
        ("postgres://127.0.0.1:1/n?sslmode=wild", 'sslmode value: "wild"; mend what follows the ?'),
        ("postgres://127.0.0.1:1/n?connect_timeout=x", "connect_timeout: 'x'; mend what follows"),
    ],
)
def test_a_database_that_nobody_could_use(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, url: str, says: str
):
    file = tmp_path / "letter.txt"
    file.write_text("This is no database. " * 100)
    monkeypatch.setenv("DATABASE_URL", url.format(file=file))
    config = Environment().database("DATABASE_URL", sqlite="sqlite:///x")
    connection = ConnectionHandler({"default": config})["default"]
    params = connection.get_connection_params()
    with (
        pytest.raises(DatabaseError) as failed,
        connection.wrap_database_errors,
        closing(connection.get_new_connection(params)) as opened,
    ):
        opened.execute("SELECT count(*) FROM sqlite_master")
    reason = startup.explain(failed.value)
    assert reason is not None
    assert says in str(reason)
    assert reason.status == startup.BAD_SETTING


@pytest.mark.parametrize(
    ("message", "says"),
    [
        ("connection failed: FATAL:  sorry, too many clients already", "raise its max_connections"),
        ("database or disk is full", "look at the disk that it is on"),
    ],
)
def test_a_database_that_is_full(message: str, says: str):
    reason = startup.explain(DatabaseError(message))
    assert reason is not None
    assert says in str(reason)
    assert reason.status == startup.UNAVAILABLE


@pytest.mark.parametrize("host", ["a..b", "a" * 70])
def test_a_host_that_no_resolver_could_be_asked_for(settings, host: str):
    settings.HOST = host
    with pytest.raises(startup.CannotStart, match=f"HOST is '{host}', which is no address"):
        startup.require_port()


# It says so of an option that older versions need.
@pytest.mark.filterwarnings("ignore:The send_default_pii option:DeprecationWarning")
@pytest.mark.parametrize("dsn", ["garbage", "https://sentry.example/1", "http://["])
def test_a_dsn_that_is_none(settings, dsn: str):
    settings.SENTRY_DSN = dsn
    with pytest.raises(ImproperlyConfigured, match=r"SENTRY_DSN is no DSN: .+; copy it from"):
        error_reports.start()
