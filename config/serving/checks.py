"""What `manage.py check` and every start say of settings that start, and then disappoint."""

from typing import Any

from django.conf import settings
from django.core import checks


@checks.register()
def check_hosts(**kwargs: Any) -> list[checks.CheckMessage]:
    """A production server whose callers would all be refused, or claim and never call back."""
    if settings.DEVELOPMENT or settings.HOSTS_ARE_NAMED:
        return []
    return [
        checks.Warning(
            "Neither PULLWAKE_PUBLIC_URL nor ALLOWED_HOSTS is set: only callers on this machine, "
            "by the name of localhost, are answered.",
            hint="Set PULLWAKE_PUBLIC_URL to where runners reach this server, for instance "
            "https://wake.example.com: callback URLs are made of it.",
            id="pullwake.W001",
        )
    ]
