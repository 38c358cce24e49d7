from typing import Any

from django.db import migrations, models

from core.identifiers import new_id


def give_registrations(apps: Any, schema_editor: Any) -> None:
    """What was made after its type was registered counts as made under it."""
    EntityType = apps.get_model("dispatch", "EntityType")
    Entity = apps.get_model("dispatch", "Entity")
    for name, created_at in EntityType.objects.values_list("name", "created_at"):
        registration = new_id("reg")
        EntityType.objects.filter(pk=name).update(registration=registration)
        made_under = Entity.objects.filter(type=name, created_at__gte=created_at)
        made_under.update(registration=registration)


class Migration(migrations.Migration):
    dependencies = [
        ("dispatch", "0004_first_work"),
    ]

    operations = [
        migrations.AlterModelOptions(
            name="entitytype",
            options={
                "default_permissions": ("view",),
                "permissions": [
                    ("transfer_entitytype", "Can transfer entity types"),
                    ("remove_entitytype", "Can remove entity types"),
                ],
            },
        ),
        migrations.AddField(
            model_name="entity",
            name="registration",
            field=models.CharField(
                blank=True,
                db_default="",
                default="",
                help_text="of its type, that it was made under; empty: nobody had registered it",
                max_length=28,
            ),
        ),
        migrations.AddField(
            model_name="entitytype",
            name="externally_writable_collections",
            field=models.JSONField(blank=True, null=True),
        ),
        migrations.AddField(
            model_name="entitytype",
            name="registration",
            field=models.CharField(
                blank=True,
                db_default="",
                default="",
                help_text="new with each first registration of the name; its entities keep it",
                max_length=28,
            ),
        ),
        migrations.AddField(
            model_name="entitytype",
            name="serve_endpoint",
            field=models.TextField(blank=True, null=True),
        ),
        migrations.AddField(
            model_name="entitytype",
            name="slash_commands",
            field=models.JSONField(blank=True, null=True),
        ),
        # The column stays, for servers of the last version write it too; the foreign key goes.
        migrations.AlterField(
            model_name="entitytype",
            name="default_runner",
            field=models.CharField(
                blank=True, db_column="default_runner_id", max_length=128, null=True
            ),
        ),
        migrations.RunPython(give_registrations, migrations.RunPython.noop),
    ]
