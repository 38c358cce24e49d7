"""Two roles that come with the server: viewers see, operators act."""

from typing import Any

from django.apps import apps

ROLES = {
    "viewers": ("view_",),
    "operators": (
        "view_",
        "enable_",
        "disable_",
        "expire_",
        "pause_",
        "resume_",
        "stop_",
        "kill_",
        "wake_",
        "redrive_",
        "send_",
        "move_",
        "transfer_",
        "retain_",
        "remove_",
        "delete_runner",
    ),
}
"""What the names of a role's permissions begin with; access tokens are for superusers alone."""

APPS = ("runners", "dispatch", "claims")


def make_roles(using: str, **kwargs: Any) -> None:
    """After a migration: create the missing groups. Existing ones stay as they are."""
    Group = apps.get_model("auth", "Group")
    Permission = apps.get_model("auth", "Permission")
    groups = Group.objects.using(using)
    missing = set(ROLES) - set(groups.values_list("name", flat=True))
    for name in sorted(missing):
        granted = [
            permission
            for permission in Permission.objects.using(using)
            .filter(content_type__app_label__in=APPS)
            .exclude(content_type__model="accesstoken")
            if permission.codename.startswith(ROLES[name])
        ]
        log = Permission.objects.using(using).filter(codename="view_logentry")
        groups.create(name=name).permissions.set([*granted, *log])
