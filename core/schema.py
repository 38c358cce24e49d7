"""Operations for migrations of tables that are in use."""

from typing import Any

from django.contrib.postgres import operations
from django.db import migrations


class AddIndexConcurrently(operations.AddIndexConcurrently):
    """Adds an index while others write to its table; for a migration with ``atomic = False``.

    One that was broken off is begun again. SQLite has one writer anyway, and adds it as any.
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
        # What was broken off is there already, and is used by nobody.
        name = schema_editor.quote_name(self.index.name)
        schema_editor.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {name}")
        super().database_forwards(app_label, schema_editor, from_state, to_state)

    def database_backwards(
        self, app_label: str, schema_editor: Any, from_state: Any, to_state: Any
    ) -> None:
        """Remove it, as gently."""
        gentle = schema_editor.connection.vendor == "postgresql"
        operation = operations.AddIndexConcurrently if gentle else migrations.AddIndex
        operation.database_backwards(self, app_label, schema_editor, from_state, to_state)
