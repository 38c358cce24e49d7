"""The pages of a conversation: a part of an entity's page, read backwards and followed."""

from typing import Any

from django.contrib.admin.utils import unquote
from django.core.exceptions import PermissionDenied
from django.http import Http404, HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.urls import URLPattern, path

from dispatch.models import Entity
from operators import conversation
from operators.kit.markup import list_of
from operators.kit.verbs import OperatorAdmin

_MOST_DIGITS = 16


class TalkingAdmin(OperatorAdmin):
    """An entity's page, with the conversation in its stream."""

    def get_urls(self) -> list[URLPattern]:
        """Two addresses below that of an entity."""
        wrap = self.admin_site.admin_view
        return [
            path(
                "<path:object_id>/conversation/",
                wrap(self.conversation_view),
                name="dispatch_entity_conversation",
            ),
            path("<path:object_id>/events/", wrap(self.events_view), name="dispatch_entity_events"),
            *super().get_urls(),
        ]

    def conversation_view(self, request: HttpRequest, object_id: str) -> HttpResponse:
        """A page of it: the newest, the one ``before`` an offset, or what came ``after`` one.

        ``seen`` is the state in the last answer: 204 while that has not changed.
        """
        entity = self._entity(request, object_id)
        wanted = _offset(request, "before")
        since = _offset(request, "after")
        if since is not None:
            page = conversation.after(entity, since)
            if page.last == since and page.seen == request.GET.get("seen"):
                return HttpResponse(status=204)
        elif wanted is not None:
            page = conversation.before(entity, wanted)
        else:
            page = conversation.newest(entity)
        context = {"original": entity, "title": f"Conversation of {entity}", **shown(page)}
        context["history_url"] = list_of("admin_logentry", what="entity", row=entity.pk)
        if request.headers.get("X-Requested-With") == "fetch":
            template = "operators/conversation_page.html"
            return TemplateResponse(request, template, context)
        return self.render(request, "operators/conversation.html", context)

    def events_view(self, request: HttpRequest, object_id: str) -> HttpResponse:
        """The JSON of events, ``first`` to ``last``."""
        entity = self._entity(request, object_id)
        first, last = _offset(request, "first"), _offset(request, "last")
        if first is None:
            raise Http404
        text = conversation.raw(entity, first, first if last is None else last)
        return HttpResponse(text, content_type="text/plain; charset=utf-8")

    def _entity(self, request: HttpRequest, object_id: str) -> Entity:
        if not self.has_view_permission(request):
            raise PermissionDenied
        try:
            found = Entity.objects.filter(pk=int(unquote(object_id))).first()
        except (ValueError, OverflowError):
            found = None
        if found is None:
            raise Http404
        return found


def shown(page: conversation.Conversation) -> dict[str, Any]:
    """Render a page of it."""
    return {"conversation": page, "now": page.now, "state": page.state}


def _offset(request: HttpRequest, name: str) -> int | None:
    """The offset in the address. Raises Http404 for an invalid one."""
    text = request.GET.get(name)
    if text is None:
        return None
    if not (text.isascii() and text.isdecimal() and len(text) <= _MOST_DIGITS):
        raise Http404
    return int(text)
