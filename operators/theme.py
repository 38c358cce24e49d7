"""How the admin looks, and what its sidebar offers: django-unfold's settings."""

from typing import Any

from django.http import HttpRequest
from django.templatetags.static import static
from django.urls import reverse_lazy


def _may(permission: str) -> Any:
    def check(request: HttpRequest) -> bool:
        return bool(request.user.has_perm(permission))

    return check


def _item(title: str, icon: str, page: str, permission: str) -> dict[str, Any]:

    return {
        "title": title,
        "icon": icon,
        "link": reverse_lazy(f"admin:{page}"),
        "permission": _may(permission),
    }


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
    "SCRIPTS": [lambda request: static("pullwake/admin.js")],
    "SIDEBAR": {
        "navigation": [
            {
                "items": [
                    {
                        "title": "Overview",
                        "icon": "monitoring",
                        "link": reverse_lazy("admin:index"),
                    },
                    _item("Runners", "dns", "runners_runner_changelist", "runners.view_runner"),
                    _item(
                        "Claims",
                        "lock_clock",
                        "claims_consumerclaim_changelist",
                        "claims.view_consumerclaim",
                    ),
                    _item(
                        "Entities",
                        "token",
                        "dispatch_entity_changelist",
                        "dispatch.view_entity",
                    ),
                    _item(
                        "Wakes",
                        "notifications_active",
                        "dispatch_wake_changelist",
                        "dispatch.view_wake",
                    ),
                ],
            },
            {
                "title": "Behind it",
                "separator": True,
                "items": [
                    _item(
                        "Dispatch states",
                        "conversion_path",
                        "dispatch_dispatchstate_changelist",
                        "dispatch.view_dispatchstate",
                    ),
                    _item(
                        "Entity types",
                        "category",
                        "dispatch_entitytype_changelist",
                        "dispatch.view_entitytype",
                    ),
                    _item(
                        "Access tokens",
                        "key",
                        "runners_accesstoken_changelist",
                        "runners.view_accesstoken",
                    ),
                ],
            },
            {
                "title": "People",
                "separator": True,
                "items": [
                    _item(
                        "Audit log", "history", "admin_logentry_changelist", "admin.view_logentry"
                    ),
                    _item("Users", "person", "auth_user_changelist", "auth.view_user"),
                    _item("Groups", "group", "auth_group_changelist", "auth.view_group"),
                ],
            },
        ],
    },
}
