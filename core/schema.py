"""Operations for migrations of tables that are in use."""

from typing import Any

from django.contrib.postgres import operations
from django.db import migrations


class AddIndexConcurrently(operations.AddIndexConcurrently):
    """Adds an index while others write to the table; for a migration with ``atomic = False``.

    An index whose creation was interrupted is built again. SQLite has one writer anyway, and adds
    it normally.
    """

    def database_forwards(
        self, app_label: str, schema_editor: Any, from_state: Any, to_state: Any
    ) -> None:
        """Add it."""
        if schema_editor.connection.vendor != "postgresql":
            migrations.AddIndex.database_forwards(
                self, app_label, schema_editor, from_state, to_state
            )
            return
        # An interrupted index exists, but no query uses it.
        name = schema_editor.quote_name(self.index.name)
        schema_editor.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {name}")
        super().database_forwards(app_label, schema_editor, from_state, to_state)

    def database_backwards(
        self, app_label: str, schema_editor: Any, from_state: Any, to_state: Any
    ) -> None:
        """Remove the index, without locking others out."""
        gentle = schema_editor.connection.vendor == "postgresql"
        operation = operations.AddIndexConcurrently if gentle else migrations.AddIndex
        operation.database_backwards(self, app_label, schema_editor, from_state, to_state)
