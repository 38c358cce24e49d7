"""Who may act on an entity: its creator and those who may manage its type, or its handler.

A handler proves itself with the claim or write token of its entity's active claim, in
``Electric-Claim-Token`` or ``Authorization: Bearer``.
"""

from dataclasses import dataclass

from django.http import HttpRequest
from rest_framework.authentication import BaseAuthentication

from config.errors import Forbidden, NotFound, Unauthenticated
from config.identifiers import hashed, looked_up
from config.prepared import Param, Select
from config.principals import Principal
from dispatch import entities
from dispatch.models import Entity
from runners.authentication import bearer, principal_behind, principal_of

CLAIM_TOKEN_PREFIX = "pwc_"  # noqa: S105
WRITE_TOKEN_PREFIX = "pww_"  # noqa: S105
NOT_THE_HOLDER = "The token is not one of the entity's active claim."


@dataclass(frozen=True, slots=True)
class Actor:
    """Who sends: the principal whose rights hold, and the URL that the message is from."""

    principal: Principal
    url: str


def claim_token(request: HttpRequest) -> str | None:
    """The claim or write token that the request carries, or None.

    Raises Unauthenticated when two headers carry two tokens.
    """
    held = bearer(request)
    header: str | None = request.META.get("HTTP_ELECTRIC_CLAIM_TOKEN")
    if held is not None and not held.startswith((CLAIM_TOKEN_PREFIX, WRITE_TOKEN_PREFIX)):
        if header is not None:
            # A bad Bearer is refused whatever else is sent. Electric-Principal says nothing here: a
            # handler names its entity's creator there, and its runner's owner by its access token.
            principal_behind(held)
        return header
    if held is not None and header not in (None, held):
        raise Unauthenticated("Two different claim tokens were sent.")
    return header or held


class ActorAuthentication(BaseAuthentication):
    """A principal, or a handler as its entity's creator; ``request.user`` is an `Actor`."""

    def authenticate(self, request: HttpRequest) -> tuple[Actor, None]:
        """Who acts. Raises Unauthenticated for a token that is dead or unknown."""
        token = claim_token(request)
        if token is None:
            principal = principal_of(request)
            return Actor(principal, principal.url), None
        entity = written_by(token)
        if entity is None:
            raise Unauthenticated("The write token is dead or unknown.")
        return Actor(Principal.parse(entity.created_by), entity.url), None

    def authenticate_header(self, request: HttpRequest) -> str:
        """The challenge that goes with a 401."""
        return "Bearer"


_WRITTEN_BY = Select(
    lambda: Entity.objects.filter(
        claims__status="active", claims__write_token_hash=Param("token_hash")
    )
)
_ENTITY = Select(
    lambda: Entity.objects.select_related("dispatch_state__runner").filter(url=Param("url"))
)


def written_by(token: str) -> Entity | None:
    """The entity whose active claim has this write token, or None."""
    return _WRITTEN_BY.first(token_hash=hashed(token))


def find(type_name: str, name: str) -> Entity:
    """The entity at an address, with its dispatch state and its runner. Raises NotFound."""
    looked_up(type_name, name)
    entity = _ENTITY.first(url=f"/{type_name}/{name}")
    if entity is None:
        raise NotFound(f"There is no entity /{type_name}/{name}.")
    return entity


def find_to_act(principal: Principal, type_name: str, name: str) -> Entity:
    """The entity, for one who may do what its creator may. Raises NotFound, Forbidden."""
    entity = find(type_name, name)
    if not entities.may_act(entity, principal):
        raise Forbidden("The entity is another principal's.")
    return entity


def find_to_read(principal: Principal, type_name: str, name: str) -> Entity:
    """The entity, for one who may read it. Raises NotFound, Forbidden."""
    entity = find(type_name, name)
    if not entities.may_read(entity, principal):
        raise Forbidden("The entity is another principal's.")
    return entity


def find_to_read_stream(request: HttpRequest, type_name: str, name: str) -> Entity:
    """The entity, for one who may read its stream. Raises Unauthenticated, NotFound, Forbidden.

    NotFound is for principals; see `find_for_holder`.
    """
    token = claim_token(request)
    if token is None:
        return find_to_read(principal_of(request), type_name, name)
    entity = find_for_holder(type_name, name)
    if not entity.claims.opened_by(hashed(token)).exists():
        raise Unauthenticated(NOT_THE_HOLDER)
    return entity


def find_for_holder(type_name: str, name: str) -> Entity:
    """The entity, for a token that is yet to be looked at.

    Raises NotFound where none can be, and Unauthenticated where none is: a token opens nothing
    there, and who holds none of an entity is not told whether there is one.
    """
    looked_up(type_name, name)
    try:
        return find(type_name, name)
    except NotFound:
        raise Unauthenticated(NOT_THE_HOLDER) from None
