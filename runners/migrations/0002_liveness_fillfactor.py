"""Room in the pages of runner liveness, so that every heartbeat is a HOT update."""

from typing import Any

from django.db import migrations


def leave_room(apps: Any, schema_editor: Any) -> None:
    """Set PostgreSQL's fillfactor; SQLite updates in place."""
    if schema_editor.connection.vendor == "postgresql":
        schema_editor.execute("ALTER TABLE runners_runnerliveness SET (fillfactor = 50)")


class Migration(migrations.Migration):
    """Storage only: no model changes."""

    dependencies = [("runners", "0001_initial")]

    operations = [migrations.RunPython(leave_room, migrations.RunPython.noop)]
