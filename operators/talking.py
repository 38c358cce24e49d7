"""The pages below an entity's: its conversation, read backwards and followed, and its timeline."""

from typing import Any

from django.contrib.admin.utils import unquote
from django.core.exceptions import PermissionDenied
from django.http import Http404, HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.urls import URLPattern, path

from core.clock import with_now
from core.identifiers import is_number
from dispatch.models import DispatchState, Entity
from operators import conversation, timeline
from operators.kit.markup import list_of
from operators.kit.verbs import OperatorAdmin

_MOST_DIGITS = 16


class TalkingAdmin(OperatorAdmin):
    """An entity's page, with the conversation in its stream, and its timeline."""

    def get_urls(self) -> list[URLPattern]:
        """The addresses below that of an entity."""
        wrap = self.admin_site.admin_view
        return [
            path(
                "<path:object_id>/conversation/",
                wrap(self.conversation_view),
                name="dispatch_entity_conversation",
            ),
            path("<path:object_id>/events/", wrap(self.events_view), name="dispatch_entity_events"),
            path(
                "<path:object_id>/timeline/",
                wrap(self.timeline_view),
                name="dispatch_entity_timeline",
            ),
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

    def timeline_view(self, request: HttpRequest, object_id: str) -> HttpResponse:
        """A page of its timeline: the newest, or the one ``before`` a generation."""
        entity = self._entity(request, object_id)
        state: Any = with_now(DispatchState.objects.filter(pk=entity.pk)).get()
        below = _offset(request, "before")
        page = timeline.before(state, state.generation + 1 if below is None else below)
        context = {
            "original": entity,
            "title": f"Timeline of {entity}",
            "timeline": page,
            "newest": below is None,
            "now": state.now,
            "history_url": list_of("admin_logentry", what="entity", row=entity.pk),
        }
        return self.render(request, "operators/timeline.html", context)

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
    if not is_number(text, _MOST_DIGITS):
        raise Http404
    return int(text)
