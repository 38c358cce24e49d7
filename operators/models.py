"""What operators keep for each other: views of lists. `operators.kit.views` is its only writer."""

from django.conf import settings
from django.db import models
from django.db.models.functions import Now


class SavedView(models.Model):
    """A list with its filters, under a name: everybody who may see the list may open it."""

    list = models.CharField(max_length=64, help_text="the model's label: dispatch.entity")
    name = models.CharField(max_length=64)
    query = models.CharField(max_length=1000, help_text="of the list's address")
    saved_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="+"
    )
    saved_at = models.DateTimeField(db_default=Now())

    class Meta:
        default_permissions = ()
        constraints = [models.UniqueConstraint(fields=["list", "name"], name="view_name_once")]

    def __str__(self) -> str:
        return self.name
