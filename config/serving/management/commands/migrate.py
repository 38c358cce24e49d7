"""``manage.py migrate``: Django's, without blocking anybody. `serve` calls it, too."""

import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

from django.conf import settings
from django.core.management.commands import migrate
from django.db import OperationalError

from config.serving import direct
from core.database import is_lock_refused

LOCK = 0x70756C6C
"""An arbitrary key of PostgreSQL's advisory locks."""

TRIES = 60
"""How often a migration asks for a lock: with the pauses, for three minutes."""

PAUSE_S = 1.0


class Command(migrate.Command):
    """Migrate at the database's own address, one process at a time.

    A statement that waits for a lock makes others wait behind it: so a migration that does not get
    its lock soon gives up and tries again. The migrations before it are done by then.
    """

    def handle(self, *args: Any, **options: Any) -> None:
        """Migrate; raises OperationalError if a lock is refused in every try."""
        if settings.SQLITE:
            super().handle(*args, **options)
            return
        direct.require(self.stderr)
        with self._alone(), direct.as_default():
            for tried in range(1, TRIES + 1):
                try:
                    super().handle(*args, **options)
                except OperationalError as exc:
                    if not is_lock_refused(exc) or tried == TRIES:
                        raise
                else:
                    return
                self.stderr.write("A migration was not given its lock; it is tried again.")
                time.sleep(PAUSE_S)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Hold a lock that ends with its transaction, whatever happens to this process."""
        with closing(direct.connect()) as holder:
            holder.set_autocommit(False)
            if not _taken(holder):
                self.stderr.write("Another process migrates this database; it is waited for.")
                # Asked again and again: an index that is made concurrently would wait for whoever
                # waits in the database.
                while not _taken(holder):
                    time.sleep(PAUSE_S / 4)
            yield


def _taken(holder: Any) -> bool:
    with holder.cursor() as cursor:
        cursor.execute("SELECT pg_try_advisory_xact_lock(%s)", [LOCK])
        ((taken,),) = cursor.fetchall()
    if not taken:
        holder.rollback()
    return bool(taken)
