"""The migration that names whose registrations and timers are."""

from tests.commands.conftest import filled

ROWS = """
from dispatch.models import Registration, Timer
from tests.factories import EntityFactory, RegistrationFactory, TimerFactory

alices = EntityFactory.create()
bobs = EntityFactory.create(created_by="/principal/user%3Abob")
RegistrationFactory.create(subscriber=bobs)
TimerFactory.create(target=bobs, key="delayed")
TimerFactory.create(target=bobs, key="scheduled", scheduled=True, owner=alices)
TimerFactory.create(target=alices, key="lost", failed=True)
Timer.objects.filter(key="lost").update(target=None)
for rows in (Registration.objects, Timer.objects):
    rows.update(creator="")
"""


def test_those_that_there_are_count_for_their_creators(template, tmp_path):
    with filled(template, tmp_path, ROWS) as database:
        for where in (("dispatch", "0016_creators"), ()):
            done = database.manage("migrate", "--verbosity=0", *where)
            assert done.returncode == 0, done.stderr
        assert database.execute("SELECT creator FROM dispatch_registration") == [
            ("/principal/user%3Abob",)
        ]
        assert dict(database.execute("SELECT key, creator FROM dispatch_timer")) == {
            "delayed": "/principal/user%3Abob",
            "scheduled": "/principal/user%3Aalice",
            "lost": "",
        }
