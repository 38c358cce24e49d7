"""Every address: the API's, the pages', and those for whoever watches over the server."""

from django.conf import settings
from django.contrib import admin
from django.urls import include, path
from django.views.generic import RedirectView

import api.urls
from config.serving import metrics, pages, probes
from operators import live, login

handler400 = "config.error_pages.bad_request"
handler403 = "config.error_pages.permission_denied"
handler404 = "config.error_pages.page_not_found"
handler500 = "config.error_pages.server_error"

_logins = [path("admin/login-once/<str:token>/", login.login_once, name="login-once")]
if settings.PULLWAKE_OIDC_ISSUER:
    from operators import oidc

    _logins += [
        path("admin/oidc/", oidc.begin, name="oidc-begin"),
        path("admin/oidc/callback/", oidc.callback, name="oidc-callback"),
        path("admin/logout/", oidc.logout),
    ]
if settings.PULLWAKE_TOTP != "off":
    from operators import second_factor

    admin.site.unregister(second_factor.DEVICES)
    _logins += [path("admin/second-factor/", second_factor.page, name="second-factor")]

urlpatterns = [
    *api.urls.urlpatterns,
    path("livez", probes.LiveView.as_view()),
    path("readyz", probes.ReadyView.as_view()),
    path("metrics", metrics.MetricsView.as_view()),
    path("_electric/health", probes.ElectricHealthView.as_view()),
    path("_electric/openapi.json", pages.SchemaView.as_view(), name="schema"),
    path("_electric/docs", pages.DocsView.as_view(url_name="schema"), name="docs"),
    *_logins,
    path("admin/", include([path("live/", admin.site.admin_view(live.changed), name="live")])),
    path("admin/", admin.site.urls),
    path("admin", RedirectView.as_view(pattern_name="admin:index")),
    path("", RedirectView.as_view(pattern_name="admin:index")),
]
