"""Indexes of which no two serve one lookup: PostgreSQL may take the wrong one of such."""

from django.db import migrations, models

from core.schema import AddIndexConcurrently


class Migration(migrations.Migration):
    """Made while others claim."""

    atomic = False

    dependencies = [
        ("claims", "0006_claim_in_stream"),
    ]

    operations = [
        AddIndexConcurrently(
            model_name="consumerclaim",
            index=models.Index(
                fields=["runner"],
                name="claim_held",
                condition=models.Q(("runner__isnull", False), ("status", "active")),
            ),
        ),
        AddIndexConcurrently(
            model_name="consumerclaim",
            index=models.Index(
                fields=["write_token_hash"],
                name="claim_writer",
                condition=models.Q(("write_token_hash__gt", "")),
            ),
        ),
        migrations.RemoveIndex(model_name="consumerclaim", name="claim_active"),
        migrations.RemoveIndex(model_name="consumerclaim", name="claim_write_token"),
    ]
