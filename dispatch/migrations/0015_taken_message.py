import django.db.models.deletion
from django.db import migrations, models
from django.db.models.functions import Now


class Migration(migrations.Migration):
    dependencies = [
        ("dispatch", "0014_health_counts"),
    ]

    operations = [
        migrations.CreateModel(
            name="TakenMessage",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                ("key", models.CharField(max_length=256)),
                ("position", models.BinaryField(max_length=1024)),
                ("offset", models.PositiveBigIntegerField(help_text="of the message")),
                (
                    "held",
                    models.BooleanField(help_text="of mode paused: nothing after it is taken"),
                ),
                ("created_at", models.DateTimeField(db_default=Now())),
                ("epoch", models.PositiveBigIntegerField(help_text="of the claim")),
                (
                    "entity",
                    models.ForeignKey(
                        db_index=False,
                        on_delete=django.db.models.deletion.CASCADE,
                        related_name="taken",
                        to="dispatch.entity",
                    ),
                ),
            ],
            options={"default_permissions": ()},
        ),
        migrations.AddConstraint(
            model_name="takenmessage",
            constraint=models.UniqueConstraint(fields=("entity", "key"), name="taken_message_once"),
        ),
    ]
