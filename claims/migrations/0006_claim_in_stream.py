"""An index that finds the claims in a part of their entity's stream."""

from django.db import migrations, models

from core.schema import AddIndexConcurrently


class Migration(migrations.Migration):
    """Made while others claim."""

    atomic = False

    dependencies = [
        ("claims", "0005_dead_letters"),
    ]

    operations = [
        AddIndexConcurrently(
            model_name="consumerclaim",
            index=models.Index(fields=["entity", "delivered_offset"], name="claim_in_stream"),
        ),
    ]
