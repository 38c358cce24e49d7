"""How the admin looks, and what its sidebar offers: django-unfold's settings."""

from typing import Any

from django.http import HttpRequest
from django.templatetags.static import static
from django.urls import reverse_lazy


def _list(title: str, icon: str, app: str, model: str) -> dict[str, Any]:
    """The item that leads to a model's list, for whoever may see it."""

    def may_see(request: HttpRequest) -> bool:
        return bool(request.user.has_perm(f"{app}.view_{model}"))

    link = reverse_lazy(f"admin:{app}_{model}_changelist")
    return {"title": title, "icon": icon, "link": link, "permission": may_see}


UNFOLD = {
    "SITE_TITLE": "Pullwake",
    "SITE_HEADER": "Pullwake",
    "SITE_SYMBOL": "bolt",
    "SITE_URL": None,
    "SITE_FAVICONS": [
        {
            "rel": "icon",
            "type": "image/svg+xml",
            "href": lambda request: static("pullwake/favicon.svg"),
        }
    ],
    "SHOW_HISTORY": True,
    "DASHBOARD_CALLBACK": "operators.overview.dashboard",
    "STYLES": [lambda request: static("pullwake/admin.css")],
    "SCRIPTS": [
        lambda request: static("pullwake/admin.js"),
        lambda request: static("pullwake/page.js"),
        lambda request: static("pullwake/idiomorph.min.js"),
        lambda request: static("pullwake/live.js"),
        lambda request: static("pullwake/conversation.js"),
    ],
    "COMMAND": {"search_callback": "operators.find.anything"},
    "SIDEBAR": {
        "navigation": [
            {
                "items": [
                    {
                        "title": "Overview",
                        "icon": "monitoring",
                        "link": reverse_lazy("admin:index"),
                    },
                    _list("Runners", "dns", "runners", "runner"),
                    _list("Claims", "lock_clock", "claims", "consumerclaim"),
                    _list("Entities", "token", "dispatch", "entity"),
                    _list("Wakes", "notifications_active", "dispatch", "wake"),
                    _list("Dead letters", "markunread_mailbox", "claims", "deadletter"),
                    _list("Timers", "schedule", "dispatch", "timer"),
                    _list("Shared states", "forum", "dispatch", "sharedstate"),
                ],
            },
            {
                "title": "Internals",
                "separator": True,
                "items": [
                    _list("Dispatch states", "conversion_path", "dispatch", "dispatchstate"),
                    _list("Entity types", "category", "dispatch", "entitytype"),
                    _list("Access tokens", "key", "runners", "accesstoken"),
                ],
            },
            {
                "title": "People",
                "separator": True,
                "items": [
                    _list("Audit log", "history", "admin", "logentry"),
                    _list("Users", "person", "auth", "user"),
                    _list("Groups", "group", "auth", "group"),
                ],
            },
        ],
    },
}

WITH_SECOND_FACTOR: dict[str, Any] = {
    "LOGIN": {"form": "operators.second_factor.LoginForm"},
    "ACCOUNT": {
        "navigation": [{"title": "Second factor", "link": reverse_lazy("second-factor")}],
    },
}
"""What PULLWAKE_TOTP adds."""
