from typing import Any

from django.db import migrations
from django.db.models import OuterRef, Subquery


def fill_active_epoch(apps: Any, schema_editor: Any) -> None:
    """Tell each dispatch state the epoch of the claim that holds its entity."""
    using = schema_editor.connection.alias
    claims = apps.get_model("claims", "ConsumerClaim").objects.using(using).filter(status="active")
    states = apps.get_model("dispatch", "DispatchState").objects.using(using)
    epoch = claims.filter(entity=OuterRef("pk")).values("epoch")[:1]
    states.filter(pk__in=claims.values("entity")).update(active_epoch=Subquery(epoch))


class Migration(migrations.Migration):
    dependencies = [
        ("claims", "0001_initial"),
        ("dispatch", "0003_active_epoch"),
    ]

    operations = [migrations.RunPython(fill_active_epoch, migrations.RunPython.noop)]
