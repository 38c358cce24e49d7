"""Whether this process can still work: what /livez tells a supervisor, which then replaces it.

The database's absence is no reason to replace it: a new process would miss it just as much. A
reason is that this process gets no answer from a database that answers others, that one of its
threads has ended, or that its SQLite file is another one now. (A worker whose loop is stuck answers
nothing, and gunicorn's master replaces it.)
"""

import logging
import threading
import time
from contextlib import closing

from django.conf import settings
from django.db import DEFAULT_DB_ALIAS, DatabaseError, connections

from config.serving import cooperative
from core import sqlite
from core.rounds import Rounds

logger = logging.getLogger(__name__)


class SelfCheck(Rounds):
    """The thread of a server that checks whether its pool still works.

    Other threads use the database all the time. When none got an answer since the last look, this
    one opens a connection outside the pool.
    """

    NAME = "self-check"
    EVERY_S = 2.0

    def __init__(self) -> None:
        super().__init__()
        self._looked_at = 0.0  # so that the first look finds an answer, and asks nobody
        self._unanswered_since: float | None = None

    def _round(self) -> None:
        answered = cooperative.answered_at() > self._looked_at
        self._looked_at = time.monotonic()
        if answered or not _is_reachable():
            self._unanswered_since = None
        elif self._unanswered_since is None:
            self._unanswered_since = self._looked_at
            logger.warning("new connections to the database are made, and the pool's not answered")

    def unanswered_s(self) -> float:
        """For how many seconds the database has been reachable without answering this process."""
        since = self._unanswered_since
        return 0.0 if since is None else time.monotonic() - since


def _is_reachable() -> bool:
    default = connections[DEFAULT_DB_ALIAS]
    options = {k: v for k, v in default.settings_dict["OPTIONS"].items() if k != "pool"}
    fresh = type(default)({**default.settings_dict, "OPTIONS": options}, DEFAULT_DB_ALIAS)
    with closing(fresh):
        try:
            fresh.ensure_connection()
        except DatabaseError:
            return False
    return True


self_check = SelfCheck()
"""This process's."""

needed: list[threading.Thread] = []
"""The threads that this process cannot do without, while it serves."""


def trouble() -> str | None:
    """Why this process should be replaced, a sentence; None if it should not."""
    ended = [thread.name for thread in needed if not thread.is_alive()]
    if ended:
        return f"This process is without {', '.join(ended)}: start another."
    try:
        sqlite.require_file()
    except sqlite.FileGone as gone:
        return str(gone)
    unanswered_s = self_check.unanswered_s()
    if unanswered_s > settings.PULLWAKE_STUCK_S:
        return (
            f"The database has not answered this process for {unanswered_s:.0f} s: start another."
        )
    return None
