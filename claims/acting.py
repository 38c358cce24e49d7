"""How far a claim reaches: with its write token, and in the name of its entity's creator.

A handler works for its entity's creator, on a runner that may belong to another principal. Then the
claim opens what the task is about, and not everything that the creator has.
"""

from claims.models import ClaimQuerySet, ConsumerClaim
from core.identifiers import hash_secret
from core.principals import Principal
from dispatch import entities, shared_states
from dispatch.models import Entity, SharedState


def opened_by(token: str, url: str) -> int | None:
    """The key of the entity at a URL, if this is the claim or write token of its active claim."""
    claims = ConsumerClaim.objects.opened_by(hash_secret(token)).filter(entity__url=url)
    return claims.values_list("entity_id", flat=True).first()


def reaches(claim: ConsumerClaim, entity: Entity) -> bool:
    """Whether the claim's write token is valid for this entity, as far as its creator's rights go.

    On the creator's own runner it is, for every entity; on another's, for the claim's entity, its
    parent, and its descendants. The claim comes with its runner and its entity.
    """
    held, runner = claim.entity, claim.runner
    if held is None or runner is None:
        return False
    return runner.owner_principal == held.created_by or entities.is_near(held, entity)


def acts_for(
    owner: Principal,
    creator: Principal,
    url: str | None,
    *,
    within: bool,
    runner_id: str | None = None,
) -> bool:
    """Whether a runner of the owner holds the creator's entity at this URL, in one statement.

    None: any entity of the creator's. ``within``: or one that the entity at this URL descends from.
    ``runner_id``: that runner.
    """
    held = _held_by(owner, runner_id).filter(entity__created_by=creator.url)
    if url is None:
        return held.exists()
    if within:
        return held.filter(entity__in=entities.lineage(url)).exists()
    return held.filter(entity__url=url).exists()


def may_read(owner: Principal, entity: Entity, runner_id: str | None = None) -> bool:
    """Whether a runner of the owner holds this entity or an ancestor whose creator may read it.

    While that claim lasts, the owner may read its stream, too. ``runner_id``: that runner.
    """
    above = _held_by(owner, runner_id).filter(entity__in=entities.lineage(entity.url))
    creators = above.values_list("entity__created_by", flat=True).distinct()
    return any(entities.may_read(entity, Principal.parse(each)) for each in creators)


def may_use(owner: Principal, state: SharedState, runner_id: str) -> bool:
    """Whether this runner of the owner holds an entity for which it may use a shared state."""
    held = _held_by(owner, runner_id).values("entity")
    return shared_states.may_use_for(state, Entity.objects.filter(pk__in=held))


def _held_by(owner: Principal, runner_id: str | None) -> ClaimQuerySet:
    held = ConsumerClaim.objects.active().filter(runner__owner_principal=owner.url)
    return held if runner_id is None else held.filter(runner=runner_id)
