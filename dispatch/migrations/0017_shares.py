"""Whose each registration and timer is, and the indexes that share out what is due by that."""

from typing import Any

from django.db import migrations, models
from django.db.models import F, OuterRef, Q, Subquery
from django.db.models.functions import Coalesce

from core.schema import AddIndexConcurrently

BATCH = 1000


def fill_creators(apps: Any, schema_editor: Any) -> None:
    """Name the creators, some at a time: others deliver and fire meanwhile."""
    using = schema_editor.connection.alias
    registrations = apps.get_model("dispatch", "Registration").objects.using(using)
    timers = apps.get_model("dispatch", "Timer").objects.using(using)
    fill(registrations, F("subscriber__created_by"))
    of_any = Q(owner__isnull=False) | Q(target__isnull=False)
    fill(timers.filter(of_any), Coalesce("owner__created_by", "target__created_by"))


def fill(rows: Any, creator: Any) -> None:
    """Each batch is a transaction of its own."""
    own = Subquery(rows.filter(pk=OuterRef("pk")).values(own=creator)[:1])
    last = 0
    while keys := list(
        rows.filter(pk__gt=last).order_by("pk").values_list("pk", flat=True)[:BATCH]
    ):
        rows.filter(pk__in=keys, creator="").update(creator=own)
        last = keys[-1]


class Migration(migrations.Migration):
    """Done while others register and set timers; it can be begun again."""

    atomic = False

    dependencies = [
        ("dispatch", "0016_creators"),
    ]

    operations = [
        migrations.RunPython(fill_creators, migrations.RunPython.noop),
        AddIndexConcurrently(
            model_name="registration",
            index=models.Index(
                fields=["creator", "due_at", "id"],
                name="registration_share",
                condition=models.Q(("due_at__isnull", False)),
            ),
        ),
        AddIndexConcurrently(
            model_name="timer",
            index=models.Index(
                fields=["creator", "due_at", "id"],
                name="timer_share",
                condition=models.Q(("failed_at__isnull", True)),
            ),
        ),
    ]
