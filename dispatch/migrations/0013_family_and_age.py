"""Indexes that find an entity's children, whoever made them, and entities by their age."""

from django.db import migrations, models

from core.schema import AddIndexConcurrently


class Migration(migrations.Migration):
    """Made while others make entities."""

    atomic = False

    dependencies = [
        ("dispatch", "0012_type_retention"),
    ]

    operations = [
        AddIndexConcurrently(
            model_name="entity",
            index=models.Index(
                fields=["parent", "-id"],
                name="entity_parent",
                condition=models.Q(("parent", ""), _negated=True),
            ),
        ),
        AddIndexConcurrently(
            model_name="entity",
            index=models.Index(fields=["created_at"], name="entity_created"),
        ),
    ]
