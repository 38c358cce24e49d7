"""The REST API of shared states: streams of JSON that several entities write to."""

from functools import partial
from typing import Any

from django.http import HttpRequest, HttpResponse
from django.http.response import HttpResponseBase

from api.acting import ActingAuthentication, ForActor
from api.fields import is_utf8
from api.openapi import documented
from api.streams import (
    APPEND_SENDS,
    KEPT_SENDS,
    LIVE,
    READ_PARAMETERS,
    answer_append,
    read_events,
    serve,
)
from api.views import ApiView
from core.bodies import raw_body
from core.errors import InvalidRequest, NotFound
from core.identifiers import MAX_SHARED_STATE_NAME, is_entity_url, is_shared_state_name
from dispatch import entities, shared_states
from dispatch.models import SharedState
from dispatch.streams import offsets, producers, reads

OWNER = "Electric-Owner-Entity"

_LONGEST_PRODUCER = 1024
"""Clients make the id of a producer of the entity's and the shared state's."""

_NOT_DONE = ("Stream-TTL", "Stream-Expires-At", "Stream-Closed", "Stream-Forked-From")
"""What a client may ask of other servers' streams as it makes one."""


class SharedStateView(ForActor, ApiView):
    """/_electric/shared-state/:id"""

    authentication_classes = (ActingAuthentication,)

    @documented(
        "Make a shared state",
        answers={201: None, 200: None},
        headers=[OWNER],
        sends=["Stream-Next-Offset"],
    )
    def put(self, request: HttpRequest, shared_id: str) -> HttpResponse:
        """Make it unless there is one, and let the owner, an entity of the caller's, have it."""
        if not is_shared_state_name(shared_id) or not is_utf8(request):
            problem = f"expected 1 to {MAX_SHARED_STATE_NAME} printable characters"
            raise InvalidRequest.field("/id", problem)
        owner = request.headers.get(OWNER)
        if owner is None or not is_entity_url(owner):
            raise InvalidRequest.field(f"/{OWNER}", "expected the URL of the entity that has it")
        for name in _NOT_DONE:
            if name in request.headers:
                raise InvalidRequest.field(f"/{name}", "no shared state is made with this")
        if raw_body(request):
            raise InvalidRequest("A shared state is made empty: its events are sent by POST.")
        entity = entities.find_at(owner)
        caller = self.actor.prove(owner, within=False)
        put = shared_states.put(caller, shared_id, entity)
        response = HttpResponse(status=201 if put.is_new else 200)
        response.headers["Stream-Next-Offset"] = offsets.encode(put.state.tail)
        return response

    @documented(
        "Read a shared state",
        answers={200: list[Any], **LIVE, 204: None, 304: None},
        parameters=READ_PARAMETERS,
        errors=[410],
        headers=["If-None-Match"],
        sends=KEPT_SENDS,
    )
    def get(self, request: HttpRequest, shared_id: str) -> HttpResponseBase:
        """For whoever may act on an entity that has it, and the owner of that one's runner."""
        state = self._find(shared_id)
        require_right = partial(self.actor.require_use, state)
        return serve(request, reads.SharedEventsOf(state.pk, require_right))

    @documented("Find the tail of a shared state", answers={200: None})
    def head(self, request: HttpRequest, shared_id: str) -> HttpResponseBase:
        """The headers alone."""
        return self.get(request, shared_id)

    @documented(
        "Append to a shared state",
        body=Any,
        answers={200: None, 204: None},
        errors=[409],
        headers=producers.HEADERS,
        sends=APPEND_SENDS,
    )
    def post(self, request: HttpRequest, shared_id: str) -> HttpResponse:
        """Append an event, or an array of events."""
        state = self._find(shared_id)
        sequence = producers.Sequence.parse(request.headers, longest=_LONGEST_PRODUCER)
        appended = shared_states.append(state, read_events(request), sequence)
        return answer_append(offsets.encode(appended.tail), sequence, is_new=appended.is_new)

    def _find(self, shared_id: str) -> SharedState:
        if not is_shared_state_name(shared_id) or not is_utf8(self.request):
            raise NotFound
        return self.actor.shared_state(shared_id)
