"""The undocumented parts of psycopg that `core.prepared` uses.

Each has a test in tests/core/test_psycopg_parts.py.
"""

from typing import Any

import psycopg
from psycopg._preparing import PrepareManager
from psycopg.errors import FeatureNotSupported


class ServerCursor(psycopg.Cursor[Any]):
    """Binds at the server, which is what prepares a statement."""

    def execute(self, *args: Any, **kwargs: Any) -> Any:
        """Execute; where a column is another since it was prepared, the next time does so anew."""
        try:
            return super().execute(*args, **kwargs)
        except FeatureNotSupported:
            PrepareManager.clear(self.connection._prepared)
            raise


class LoggedCursor(ServerCursor):
    """The same while Django logs queries, and looks for the text where its own cursor keeps it."""

    def _get_prepared(self, pgq: Any, prepare: bool | None = None) -> Any:
        self._query = pgq
        return super()._get_prepared(pgq, prepare)


class KeptStatements(PrepareManager):
    """What a connection has prepared, kept until it closes or `ServerCursor` is refused one."""

    def clear(self) -> bool:
        """Keep it: psycopg asks for this after a ROLLBACK, as a table might be gone with it.

        Of ours none is, and each refusal would have all statements parsed and planned anew.
        """
        return False
