"""An entity's family as a tree, with what stands and what waits for what; each level is bounded."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from django.db.models import Exists, OuterRef

from claims.standing import Standing, of_all
from dispatch.models import Entity, Registration

SHOWN = 30
"""Children of an entity, and rows of a table, the newest."""
ABOVE = 5
"""Ancestors."""
BELOW = 5
"""Children of how many of an entity's children, and how many of each."""


@dataclass(slots=True)
class Node:
    """An entity in the tree."""

    entity: Entity
    here: bool = False
    """Whether the page is its."""
    children: list["Node"] = field(default_factory=list)
    more: bool = False
    """Whether it has more children than these."""
    standing: Standing | None = None
    says: str = ""
    """Why it stands."""
    waited: Sequence[str] = ()
    """Who of the tree waits for it, and for what of it."""


def family_of(entity: Any, now: datetime) -> dict[str, Any]:
    """For the page of an entity: the tree; and what it waits for, and who for it, besides that."""
    root = here = _with_children(Node(entity, here=True))
    for parent in _ancestors(entity):
        root = Node(parent, children=[root], more=True)
    nodes = list(_walk(root))
    urls = {each.entity.pk: each.entity.url for each in nodes}
    own = entity.registrations.filter(tick_at=None)  # what ticks is to come, and is told there
    waits = list(own.exclude(source_url__in=urls.values()).order_by("-pk")[:SHOWN])
    watchers = Registration.objects.filter(source_url=entity.url).exclude(subscriber__in=urls)
    sources = Entity.objects.filter(url__in=[each.source_url for each in waits])
    by_url = {each.url: each for each in sources.select_related("dispatch_state")}
    asked = {each.pk for each in by_url.values()} | (urls.keys() if len(urls) > 1 else set())
    found = of_all(asked) if asked else {}
    waited = _waited(urls) if len(urls) > 1 else defaultdict(list)
    for node in nodes:
        node.standing = found.get(node.entity.pk)
        node.says = node.standing.sentence(now) if node.standing else ""
        node.waited = waited[node.entity.url]
    here.children.sort(key=lambda each: _urgency(each.standing))
    for each in waits:
        each.source = by_url.get(each.source_url)
        each.standing = found.get(each.source.pk) if each.source else None
        each.says = each.standing.sentence(now) if each.standing else ""
    return {
        "tree": root if len(nodes) > 1 else None,
        "waits": sorted(waits, key=lambda each: _urgency(each.standing)),
        "watchers": list(watchers.select_related("subscriber").order_by("-pk")[:SHOWN]),
    }


def _urgency(found: Standing | None) -> int:
    """What stands until somebody does something comes first."""
    return 2 if found is None else 1 - found.lasts


def _ancestors(entity: Entity) -> Iterable[Entity]:
    """The nearest first. A parent is older than its child."""
    for _ in range(ABOVE):
        if not entity.parent:
            return
        older = Entity.objects.filter(url=entity.parent, pk__lt=entity.pk)
        found = older.select_related("dispatch_state").first()
        if found is None:
            return
        entity = found
        yield entity


def _children(entity: Entity, most: int) -> list[Any]:
    """The newest, and one more than these, if there are more; each knows whether it has any."""
    own = Entity.objects.filter(parent=entity.url, pk__gt=entity.pk)
    theirs = Entity.objects.filter(parent=OuterRef("url"), pk__gt=OuterRef("pk"))
    told = own.select_related("dispatch_state").annotate(has_children=Exists(theirs))
    return list(told.order_by("-pk")[: most + 1])


def _with_children(node: Node) -> Node:
    found = _children(node.entity, SHOWN)
    node.more = len(found) > SHOWN
    node.children = [Node(each, more=each.has_children) for each in found[:SHOWN]]
    for child in [each for each in node.children if each.more][:BELOW]:
        below = _children(child.entity, BELOW)
        child.more = len(below) > BELOW
        child.children = [Node(each, more=each.has_children) for each in below[:BELOW]]
    return node


def _walk(node: Node) -> Iterable[Node]:
    yield node
    for child in node.children:
        yield from _walk(child)


def _waited(urls: dict[int, str]) -> dict[str, list[str]]:
    """For each of these URLs, by their entities' keys, who of these waits for what there."""
    rows = Registration.objects.filter(subscriber__in=urls, source_url__in=urls.values())
    told: dict[str, list[str]] = defaultdict(list)
    for row in rows.order_by("pk")[: 10 * SHOWN]:
        told[row.source_url].append(f"{urls[row.subscriber_id]} waits for its {row.awaited}")
    return told
