"""Acting for another: a handler for its entity's creator, and so its runner's owner.

A handler acts with its write token. The existing runtime's spawns, tags and signals carry no token
of the claim: beside the access token of the runner's owner they name the entity's creator in
``Electric-Principal``. That is accepted for as long as the claim lasts, for what concerns the
claim's entity.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, cast

from django.http import HttpRequest

from api.authentication import (
    FOR_ONE_RUNNER,
    NAMES_ANOTHER,
    Authentication,
    claim_token,
    principal_of,
    proven_and_named,
)
from claims import acting, writes
from claims.models import ConsumerClaim
from core.errors import Forbidden, Unauthenticated
from core.principals import Principal
from dispatch import shared_states
from dispatch.models import Entity, SharedState


@dataclass(frozen=True, slots=True)
class Actor:
    """Who acts: the principal whose rights count, and the URL that a message is from.

    ``owner`` calls in its name, by a claim that `prove` looks for: another principal, or one whose
    token is limited to one runner, ``runner_id``, which then must hold the claim. ``claim`` is the
    one whose write token was sent; `require_reach` keeps it within its bounds.
    """

    principal: Principal
    url: str
    owner: Principal | None = None
    runner_id: str | None = None
    claim: ConsumerClaim | None = None

    # Django REST framework's idea of a user, which this stands in for.
    is_authenticated: ClassVar = True

    def prove(self, url: str | None, *, within: bool) -> Principal:
        """The principal whose rights count for a call about the entity at this URL, or about none.

        ``within``: a call about a descendant of a claimed entity counts, too. Raises Forbidden. It
        costs one statement if another calls in the principal's name, else none.
        """
        if self.owner is not None and not acting.acts_for(
            self.owner, self.principal, url, within=within, runner_id=self.runner_id
        ):
            raise self._refusal()
        return self.principal

    def require_itself(self) -> Principal:
        """The principal, unless another calls in its name. Raises Forbidden."""
        if self.owner is not None:
            raise self._refusal()
        return self.principal

    def shared_state(self, name: str) -> SharedState:
        """One that it may read and write, by its name. Raises NotFound, Forbidden."""
        if self.owner not in (None, self.principal):
            raise self._refusal()
        state = shared_states.find(name)
        self.require_use(state)
        return state

    def require_use(self, state: SharedState) -> None:
        """Raise Forbidden for a shared state that it may no longer read and write.

        With a token that is limited to one runner it may for an entity that this runner holds.
        """
        if self.runner_id is None:
            shared_states.require_use(state, self.principal)
        elif not acting.may_use(self.principal, state, self.runner_id):
            raise self._refusal()

    def _refusal(self) -> Forbidden:
        return Forbidden(NAMES_ANOTHER if self.runner_id is None else FOR_ONE_RUNNER)

    def require_reach(self, entity: Entity) -> None:
        """Raise Forbidden for an entity that the claim's write token does not reach."""
        if self.claim is not None and not acting.reaches(self.claim, entity):
            raise Forbidden("The write token does not reach that far.")


class ForActor:
    """A view whose callers are authenticated by one of these."""

    request: Any

    @property
    def actor(self) -> Actor:
        """Who acts."""
        return cast(Actor, self.request.user)


class ActingAuthentication(Authentication):
    """A principal, or the owner of its runner calling in its name: an `Actor` that must `prove`."""

    def authenticate(self, request: HttpRequest) -> tuple[Actor, None]:
        """Who acts. Raises Unauthenticated."""
        return _in_the_name(request), None


class HandlerAuthentication(Authentication):
    """A principal, or a handler acting as its entity's creator; ``request.user`` is an `Actor`."""

    def authenticate(self, request: HttpRequest) -> tuple[Actor, None]:
        """Who acts. Raises Unauthenticated for an invalid token."""
        token = claim_token(request)
        if token is None:
            return self.without_token(request), None
        claim = writes.claim_of(token)
        if claim is None or claim.entity is None:
            raise Unauthenticated("The write token is dead or unknown.")
        creator = Principal.parse(claim.entity.created_by)
        return Actor(creator, claim.entity.url, claim=claim), None

    def without_token(self, request: HttpRequest) -> Actor:
        """Who acts when no claim's token was sent."""
        principal = principal_of(request)
        return Actor(principal, principal.url)


class ActingHandlerAuthentication(HandlerAuthentication):
    """A principal, a handler, or a runner's owner calling in a creator's name."""

    def without_token(self, request: HttpRequest) -> Actor:
        """Who acts when no claim's token was sent."""
        return _in_the_name(request)


def _in_the_name(request: HttpRequest) -> Actor:
    principal, named, runner_id = proven_and_named(request)
    itself = named == principal and runner_id is None
    return Actor(named, named.url, owner=None if itself else principal, runner_id=runner_id)
