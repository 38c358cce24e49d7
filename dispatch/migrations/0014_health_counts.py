from django.db import migrations, models
from django.db.models import F, Q
from django.db.models.functions import Coalesce
from django.db.models.lookups import IsNull

from core.schema import AddIndexConcurrently

WOKEN_OR_CLAIMED = Coalesce(
    "outstanding_wake", "active_epoch", output_field=models.BigIntegerField()
)
PENDING = Q(last_work_offset__gt=F("cursor")) | Q(queue_waiting=True)


class Migration(migrations.Migration):
    atomic = False

    dependencies = [
        ("dispatch", "0013_family_and_age"),
    ]

    operations = [
        AddIndexConcurrently(
            model_name="dispatchstate",
            index=models.Index(
                fields=["runner"],
                name="state_unwoken",
                condition=Q(IsNull(WOKEN_OR_CLAIMED, True)) & PENDING,
            ),
        ),
        AddIndexConcurrently(
            model_name="dispatchstate",
            index=models.Index(
                fields=["runner"],
                name="state_claimed",
                condition=Q(active_epoch__isnull=False),
            ),
        ),
    ]
