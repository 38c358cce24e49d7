"""The feed of entities has those that there are."""

from django.db import migrations

TELL = """
INSERT INTO runners_change (
    kind, key, transaction, owner, other_owner, type, registration, told, retagged, gone, departed
)
SELECT
    'entity', entity.url, 0, entity.created_by,
    CASE WHEN runner.owner_principal <> entity.created_by THEN runner.owner_principal ELSE '' END,
    entity.type, entity.registration, '', 0, FALSE, FALSE
FROM dispatch_entity entity
LEFT JOIN dispatch_dispatchstate state ON state.entity_id = entity.id
LEFT JOIN runners_runner runner ON runner.id = state.runner_id
ORDER BY entity.id
"""


class Migration(migrations.Migration):
    """Rows only."""

    dependencies = [
        ("dispatch", "0008_shared_states"),
        ("runners", "0006_changes"),
    ]

    operations = [
        migrations.RunSQL(
            TELL.replace("transaction,", '"transaction",'),
            "DELETE FROM runners_change WHERE kind = 'entity'",
        )
    ]
