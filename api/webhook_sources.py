"""Webhook sources: this server has none, but existing runtimes ask for them at start-up."""

from django.http import HttpRequest, HttpResponse

from api.openapi import documented
from api.views import ApiView
from core.bodies import Body, JsonObject, answer


class WebhookSources(Body, frozen=True, kw_only=True):
    """The webhook sources, under the name that the protocol gives them."""

    webhookSources: list[JsonObject]  # noqa: N815
    """Always empty: none are served."""


class WebhookSourcesView(ApiView):
    """/_electric/webhook-sources"""

    @documented("List webhook sources", answers={200: WebhookSources})
    def get(self, request: HttpRequest) -> HttpResponse:
        """None."""
        return answer(WebhookSources(webhookSources=[]))
