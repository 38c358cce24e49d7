from typing import Any

from django.db import migrations


def rename_permission(apps: Any, schema_editor: Any) -> None:
    """Migrations make permissions, but do not rename those that are there."""
    using = schema_editor.connection.alias
    permissions = apps.get_model("auth", "Permission").objects.using(using)
    permissions.filter(content_type__app_label="claims", codename="expire_consumerclaim").update(
        name="Can take claims back"
    )


class Migration(migrations.Migration):
    dependencies = [
        ("auth", "0012_alter_user_first_name_max_length"),
        ("claims", "0002_active_epoch"),
    ]

    operations = [
        migrations.AlterModelOptions(
            name="consumerclaim",
            options={
                "default_permissions": ("view",),
                "permissions": [("expire_consumerclaim", "Can take claims back")],
                "verbose_name": "claim",
            },
        ),
        migrations.RunPython(rename_permission, migrations.RunPython.noop),
    ]
