"""The record of what was taken over, so that it happens once, whatever becomes of it here."""

from django.db import models
from django.db.models.functions import Now


class Taken(models.Model):
    """That a row of another server was taken over.

    Written in the transaction that takes it over. What was deleted, sent or changed here since is
    not taken again by the next run.
    """

    id = models.BigAutoField(primary_key=True)
    tenant = models.TextField()
    kind = models.CharField(max_length=32)
    key = models.CharField(max_length=320)
    taken_at = models.DateTimeField(db_default=Now())

    class Meta:
        default_permissions = ()
        verbose_name_plural = "taken"
        constraints = [
            models.UniqueConstraint(fields=["tenant", "kind", "key"], name="taken_once"),
        ]

    def __str__(self) -> str:
        return f"{self.kind} {self.key}"
