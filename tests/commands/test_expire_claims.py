"""manage.py expire_claims, as a process."""

import re
import signal

import psycopg
import pytest
from django.core.management import CommandError, call_command

from config.serving import startup
from tests.commands.conftest import filled
from tests.support import wait_until

DONE = re.compile(r"expired (\d+), emitted again (\d+), retried (\d+)\n")


ROWS = """
claim("e1", lapsed_h=3)
claim("e2", lapsed_h=2)
claim("e3", lease_expires_at=Now() + timedelta(minutes=10))
"""


@pytest.fixture(scope="module")
def template(template, tmp_path_factory):
    """With `ROWS`."""
    with filled(template, tmp_path_factory.mktemp("lapsed"), ROWS) as database:
        yield database


@pytest.fixture
def lapsed(database):
    """Claims of e1 and e2, lapsed since 3 h and 2 h, and a live one of e3; no server ever was."""
    return database


def statuses(database):
    rows = database.execute(
        "SELECT entity_url, status FROM claims_consumerclaim ORDER BY entity_url, epoch"
    )
    return [f"{url.removeprefix('/agent/')} {status}" for url, status in rows]


def outstanding(database):
    ((count,),) = database.execute(
        "SELECT count(*) FROM dispatch_wake WHERE status = 'outstanding'"
    )
    return count


def expire(database, *args):
    done = database.manage("expire_claims", *args)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return done.stdout


def test_it_expires_what_lapsed_once_and_wakes_what_has_work(lapsed):
    done = lapsed.manage("expire_claims")
    assert done.returncode == 0
    assert done.stdout == "expired 2, emitted again 0, retried 0\n"
    assert statuses(lapsed) == ["e1 expired", "e2 expired", "e3 active"]
    assert outstanding(lapsed) == 2

    assert lapsed.manage("expire_claims").stdout == "expired 0, emitted again 0, retried 0\n"


def test_a_dry_run_names_them_and_changes_nothing(lapsed):
    said = expire(lapsed, "--dry-run")
    assert re.fullmatch(
        r"w_\w{24} epoch 1 of /agent/e1 on r1, lapsed since \S+Z\n"
        r"w_\w{24} epoch 1 of /agent/e2 on r1, lapsed since \S+Z\n"
        r"would expire 2\n",
        said,
    )
    assert statuses(lapsed) == ["e1 active", "e2 active", "e3 active"]


def test_it_takes_no_more_than_its_limit_the_longest_lapsed_first(lapsed):
    assert expire(lapsed, "--dry-run", "--limit", "1").endswith("would expire 1\n")
    assert DONE.fullmatch(lapsed.manage("expire_claims", "--limit", "1").stdout)
    assert statuses(lapsed) == ["e1 expired", "e2 active", "e3 active"]


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *(("--interval", value) for value in ("0", "-1", "x", "", "nan", "inf", "1e9")),
        *(("--limit", value) for value in ("0", "-3", "1.5", "x", "", "nan", "inf")),
    ],
)
def test_it_refuses_a_bad_option(db, option, value):
    with pytest.raises(CommandError, match=f"argument {option}: "):
        call_command("expire_claims", f"{option}={value}")


# --- In a loop --------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_goes_on_until_it_is_told_to_stop(lapsed, seed, start, number):
    loop = start("expire_claims", "--loop", "--interval", "0.05")
    loop.says("expired 2, ")
    seed('claim("e4", lapsed_h=1)')
    wait_until(lambda: "e4 expired" in statuses(lapsed))

    assert loop.stop(number) == 0
    assert "Traceback" not in loop.said


def test_it_ends_at_once_while_it_waits_for_the_next_round(lapsed, start):
    loop = start("expire_claims", "--loop", "--interval", "600")
    loop.says("expired 2, ")
    assert loop.stop() == 0


@pytest.mark.parametrize("loop", [["--loop"], []])
def test_sigterm_lets_the_round_finish(lapsed, start, loop):
    with lapsed.locked("claims_consumerclaim"):
        command = start("expire_claims", *loop)
        wait_until(lambda: command.is_at(lapsed), timeout=30)
        command.process.send_signal(signal.SIGTERM)
        assert command.process.poll() is None

    assert command.process.wait(15) == 0, command.said
    assert DONE.findall(command.said) == [("2", "0", "0")]
    assert statuses(lapsed) == ["e1 expired", "e2 expired", "e3 active"]


@pytest.mark.postgres
def test_a_loop_survives_that_its_connections_are_cut(lapsed, seed, start):
    loop = start("expire_claims", "--loop", "--interval", "0.05")
    loop.says("expired 2, ")
    name = psycopg.conninfo.conninfo_to_dict(lapsed.url)["dbname"]
    admin = lapsed.url.removesuffix(name) + "postgres"
    with psycopg.connect(admin, autocommit=True) as connection:
        connection.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS false')
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [name]
        )
        loop.says("the database is away, trying again: ")
        connection.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS true')

    seed('claim("e4", lapsed_h=1)')
    wait_until(lambda: "e4 expired" in statuses(lapsed), timeout=30)
    assert loop.stop() == 0
    assert "Traceback" not in loop.said


def test_without_a_loop_an_outage_is_an_error(database):
    gone = database.url.replace("sqlite:///", "sqlite:////nowhere").replace(
        "@127.0.0.1", "@127.0.0.2"
    )
    done = type(database)(gone).manage("expire_claims")
    assert done.returncode == (
        startup.UNAVAILABLE if database.path is None else startup.BAD_SETTING
    )
    assert "Traceback" not in done.stderr


# --- After the servers were away --------------------------------------------------------------

PULSE = "ServerPulseFactory.create(seen_at=ago(seconds={seen}), resumed_at=ago(seconds={resumed}))"


def test_nothing_is_expired_while_no_server_is_there(lapsed, seed):
    seed(PULSE.format(seen=3600, resumed=7200))
    for args in ([], ["--dry-run"]):
        done = lapsed.manage("expire_claims", *args)
        assert done.returncode == 0
        assert re.search(
            r"No server since \S+Z: nobody could renew, nothing is expired\.", done.stdout
        )
        assert re.search(r"(would expire|expired) 0\b", done.stdout)
    assert statuses(lapsed) == ["e1 active", "e2 active", "e3 active"]


@pytest.mark.parametrize(("resumed", "expired"), [(20, 0), (40, 2)])
def test_nothing_is_expired_before_a_lease_since_a_server_came_back(lapsed, seed, resumed, expired):
    """The lease is 30 s."""
    seed(PULSE.format(seen=0, resumed=resumed))
    assert f"expired {expired}, " in lapsed.manage("expire_claims").stdout
    assert statuses(lapsed).count("e1 expired") == bool(expired)


def test_a_server_that_comes_back_expires_only_what_it_could_have_renewed(
    database, seed, start_server
):
    database.empty()
    seed(
        PULSE.format(seen=3600, resumed=7200)
        + """
claim("long", lapsed_h=2, lease=timedelta(minutes=10))
claim("short", lapsed_h=2, lease=timedelta(seconds=1))
"""
    )
    server = start_server(PULLWAKE_REAPER_INTERVAL_MS=50)
    wait_until(lambda: "short expired" in statuses(database))
    assert statuses(database)[0] == "long active"

    assert "expired 0, " in database.manage("expire_claims").stdout
    server.stop()
