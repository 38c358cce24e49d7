from django.db import migrations

import runners.models


class Migration(migrations.Migration):
    dependencies = [
        ("dispatch", "0015_taken_message"),
    ]

    operations = [
        migrations.AddField(
            model_name="registration",
            name="creator",
            field=runners.models.PrincipalField(
                blank=True, db_default="", default="", help_text="the subscriber's", max_length=512
            ),
        ),
        migrations.AddField(
            model_name="timer",
            name="creator",
            field=runners.models.PrincipalField(
                blank=True,
                db_default="",
                default="",
                help_text="the owner's, or else the target's",
                max_length=512,
            ),
        ),
    ]
