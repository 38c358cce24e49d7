from typing import Any

from django.db import migrations, models
from django.db.models import F, Q


def mark_what_is_pending(apps: Any, schema_editor: Any) -> None:
    """Events from before have only their text to tell them by; those that are done do not matter."""
    message = Q(data__startswith='{"type":"inbox"')
    signal = Q(data__startswith='{"type":"signal"', data__contains='"status":"unhandled"')
    events = apps.get_model("dispatch", "StreamEvent").objects.using(schema_editor.connection.alias)
    pending = events.filter(
        message | signal,
        offset__gt=F("entity__dispatch_state__cursor"),
        offset__lte=F("entity__dispatch_state__last_work_offset"),
    )
    events.filter(pk__in=pending.values("pk")).update(work=True)


class Migration(migrations.Migration):
    dependencies = [
        ("dispatch", "0003_operator_lists"),
    ]

    operations = [
        migrations.AddField(
            model_name="streamevent",
            name="work",
            field=models.BooleanField(
                db_default=False, default=False, help_text="an inbox message or an unhandled signal"
            ),
        ),
        migrations.RunPython(mark_what_is_pending, migrations.RunPython.noop),
        migrations.AddIndex(
            model_name="streamevent",
            index=models.Index(
                condition=models.Q(("work", True)), fields=["entity", "offset"], name="event_work"
            ),
        ),
    ]
