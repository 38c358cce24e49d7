"""The feeds of runners and of entities: what a reader may see of them, read like streams.

A page is read from the database. Readers that wait for more are served by one `Follower` a process
and feed, which reads each change once for all of them, keeps the newest in memory, and wakes the
readers that a change concerns. `runners.changes` defines how places are ordered.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import msgspec
from django.db import connection
from django.db.models import Exists, OuterRef, Q

from claims.models import ConsumerClaim
from core.bodies import JsonObject
from core.database import note_trouble
from core.errors import InvalidRequest
from core.identifiers import is_number
from core.principals import Principal
from dispatch import types
from dispatch.models import Entity, EntityType
from dispatch.streams import offsets, waiters
from dispatch.streams.reads import End, Page
from dispatch.streams.scan import PAGE_BYTES, PAGE_EVENTS
from runners import changes
from runners.changes import Kind, Place, Settled
from runners.models import Change, Runner

logger = logging.getLogger(__name__)

PACE_S = 0.2
"""Seconds between two looks of a follower, so that those it wakes are told of many changes."""

_EACH_S = 0.001
"""The same for each reader that it woke. Telling one takes a fifth of that, so a process with a
thousand readers has most of its time for its other calls."""

_UNSETTLED_S = 0.05
"""The same while it waits for an older transaction to end."""

_RETRY_S = 1.0

_LOOK_S = 2.0
"""A follower looks that often without having been told, so that no reader is past what it knows."""

_IDLE_S = 30.0
"""A follower that nobody needed for so long ends."""

_KEPT_BYTES = 16 * 1024 * 1024
"""Of JSON, that a follower keeps for readers who are a little behind."""

_DIGITS = 10**16

Show = Callable[[Change, Any], JsonObject]
"""A row as a feed's events have it: of a runner, or of an entity with its ``claim`` or None."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A change that can be read: what it says, encoded once for all readers, and its tags."""

    change: Change
    place: tuple[int, int]
    upsert: str | None
    """What all who see it are told, but for how its offset ends; None if the row is gone."""
    delete: str
    """The same for those who see it no more."""
    tags: dict[str, str]
    entity_type: EntityType | None

    @property
    def size(self) -> int:
        """Its approximate size in bytes."""
        return len(self.upsert or "")


@dataclass(frozen=True, slots=True)
class Sight:
    """Whose view of a feed it is, and which rows were asked for.

    ``only`` is the runner that an access token is limited to; ``tags`` are names with a value, or
    None for any value.
    """

    kind: Kind
    caller: Principal
    only: str = ""
    type: str = ""
    tags: tuple[tuple[str, str | None], ...] = ()

    @property
    def subjects(self) -> tuple[str, str]:
        """The subjects to which the caller's rights may have been given."""
        return (self.caller.url, self.caller.kind)

    def sees(self, entry: Entry) -> bool:
        """Whether a change concerns the caller: `visible`, for one change in memory."""
        change = entry.change
        if change.key == "":
            return change.owner in self.subjects
        if (self.type and change.type != self.type) or (self.only and change.key != self.only):
            return False
        if change.departed:
            return change.owner in self.subjects
        return self.caller.url in (change.owner, change.other_owner) or types.granted(
            entry.entity_type, self.caller, types.MANAGE
        )

    def visible(self, rows: Any, since: int) -> Any:
        """Those of these changes that concern the caller, who has read since this transaction."""
        url = self.caller.url
        mine = Q(owner=url) | Q(owner=self.caller.kind, departed=True) | Q(other_owner=url)
        if self.kind == Kind.ENTITY:
            for entity_type in types.managed_by(self.caller):
                under = Q(type=entity_type.name, registration=entity_type.registration)
                mine |= under & Q(departed=False)
        # The caller never had what was gone before it began to read.
        rows = rows.filter(mine, Q(gone=False, departed=False) | Q(transaction__gte=since))
        rows = rows.exclude(key="")
        if self.only:
            rows = rows.filter(key=self.only)
        if self.type:
            rows = rows.filter(type=self.type)
        if self.tags:
            # Of tags only the names are compared here; `event` leaves out rows with other values.
            tagged = Entity.objects.filter(
                url=OuterRef("key"), tags__has_keys=[name for name, _ in self.tags]
            )
            rows = rows.filter(
                Q(gone=True) | Q(departed=True) | Q(retagged__gte=since) | Exists(tagged)
            )
        return rows

    def must_look_anew(self, place: Place, settled: Settled) -> bool:
        """Whether the changes past a place do not tell the caller everything."""
        if place.transaction >= settled.ahead or place.since > settled.ahead:
            return True  # the place belongs to another database
        lost = Change.objects.filter(
            kind=self.kind,
            key="",
            departed=True,
            owner__in=(*self.subjects, ""),
            transaction__gte=place.since,
            transaction__lt=settled.below,
        )
        return bool(lost.exists())

    def event(self, entry: Entry, since: int) -> str | None:
        """What the caller, reading since this transaction, is told about a change that it sees."""
        change = entry.change
        upsert = not (change.departed or change.gone)
        if change.departed and types.granted(entry.entity_type, self.caller, types.MANAGE):
            return None
        if upsert and not self._wants(entry.tags):
            if change.retagged < since:
                return None
            upsert = False
        told = entry.upsert if upsert else entry.delete
        if told is None:
            return None  # the row was deleted meanwhile, which is a later change
        return f'{told}{since:016d}"}}}}'

    def _wants(self, tags: dict[str, str]) -> bool:
        return all(name in tags and value in (None, tags[name]) for name, value in self.tags)


_RESET = '{"headers":{"control":"reset"}}'
"""All rows follow: what a reader has is to be forgotten."""


def _load(kind: Kind, rows: Sequence[Change], show: Show) -> list[Entry]:
    """Load the rows behind these changes, as they are now: a few statements."""
    living = [each.key for each in rows if not (each.gone or each.departed)]
    found: dict[str, Any] = {}
    if kind == Kind.RUNNER:
        found = {each.pk: each for each in Runner.objects.filter(pk__in=living)}
    elif living:
        entities: Any = Entity.objects.filter(url__in=living).select_related("dispatch_state")
        found = {each.url: each for each in entities.defer("spawn_args", "sandbox")}
        claims = ConsumerClaim.objects.active().filter(entity__in=found.values())
        held = {each.entity_id: each for each in claims.defer("acked_streams")}
        for each in found.values():
            each.claim = held.get(each.pk)
    named = {each.type for each in rows if each.registration}
    registered = EntityType.objects.in_bulk(named) if named else {}
    return [
        _entry(change, found.get(change.key), show, _type_of(change, registered)) for change in rows
    ]


def _entry(change: Change, row: Any, show: Show, entity_type: EntityType | None) -> Entry:
    place = (change.transaction, change.pk)
    key = msgspec.json.encode(change.key).decode()
    begin = f'{{"type":"{change.kind}","key":{key}'
    end = f'"offset":"{place[0]:016d}_{place[1]:016d}_'
    upsert = None
    if row is not None:
        value = msgspec.json.encode(show(change, row)).decode()
        upsert = f'{begin},"value":{value},"headers":{{"operation":"upsert",{end}'
    delete = f'{begin},"headers":{{"operation":"delete",{end}'
    return Entry(change, place, upsert, delete, getattr(row, "tags", {}), entity_type)


def _type_of(change: Change, registered: dict[str, EntityType]) -> EntityType | None:
    entity_type = registered.get(change.type)
    if entity_type is None or entity_type.registration != change.registration:
        return None
    return entity_type


def _pack(place: Place) -> int:
    return (place.transaction * _DIGITS + place.pk) * _DIGITS + place.since


def _unpack(offset: int) -> Place:
    place, since = divmod(offset, _DIGITS)
    return Place(*divmod(place, _DIGITS), since)


class Feed:
    """A feed as a stream that can be read: a `dispatch.streams.reads.Source`."""

    passes_over = True

    def __init__(self, sight: Sight, show: Show) -> None:
        self.sight = sight
        self._show = show

    @property
    def key(self) -> str:
        """Readers with the same sight wait together."""
        return f"F{self.sight}"

    def encode(self, offset: int) -> str:
        """Three numbers: transaction, row, and the transaction since which it has been read."""
        place = _unpack(offset)
        return f"{place.transaction:016d}_{place.pk:016d}_{place.since:016d}"

    def decode(self, text: str) -> int:
        """Parse an offset. Raises InvalidRequest for another form."""
        if text in (offsets.START, offsets.encode(0)):
            return 0
        parts = text.split("_")
        if len(parts) != 3 or not all(len(each) == 16 and is_number(each, 16) for each in parts):
            raise InvalidRequest.field("/offset", "expected -1, now, or an offset that it gave")
        return _pack(Place(*map(int, parts)))

    def end(self) -> End:
        """The place past all that can be read now."""
        settled = changes.now_settled(self.sight.kind)
        return End(_pack(Place(settled.below - 1, _DIGITS - 1, settled.below)))

    def read(self, after: int) -> Page:
        """The rows that changed past this place, as they are now; all rows from the start."""
        sight, place = self.sight, _unpack(after)
        settled = changes.now_settled(sight.kind)
        events = []
        if after == 0:
            place = Place(0, 0, settled.below)
        elif sight.must_look_anew(place, settled):
            events.append(_RESET)
            place = Place(0, 0, settled.below)
        while True:
            found = sight.visible(changes.past(sight.kind, place, settled), place.since)
            rows = list(found[:PAGE_EVENTS])
            page = _page(sight, _load(sight.kind, rows, self._show), place)
            page.events[:0] = events
            if page.events or page.up_to_date:
                return page
            place = _unpack(page.next_offset)

    def follow(self, after: int) -> Page:
        """`read`, from what this process's follower knows, if that reaches back to the place.

        A waiting reader's place advances with the feed, even where no change concerns it.
        """
        if connection.in_atomic_block:  # nobody else has this view
            return self.read(after)
        follower = _follower(self.sight.kind, self._show)
        follower.serve(self)
        follower.catch_up(_unpack(after))
        page = follower.page(self.sight, _unpack(after))
        if page is not None:
            return page
        end = self.end().tail
        page = self.read(after)
        if not page.up_to_date or page.next_offset // _DIGITS > end // _DIGITS:
            return page
        since = _unpack(page.next_offset).since
        return replace(page, next_offset=end - end % _DIGITS + since)


def _page(sight: Sight, entries: Iterable[Entry], place: Place) -> Page:
    events, size = [], 0
    for count, entry in enumerate(entries, start=1):
        place = Place(*entry.place, place.since)
        event = sight.event(entry, place.since)
        if event is not None:
            events.append(event)
            size += len(event)
        if count == PAGE_EVENTS or size > PAGE_BYTES:
            # Perhaps nothing is left: then the next page is empty, and says so.
            return Page(events, _pack(place), up_to_date=False)
    return Page(events, _pack(place), up_to_date=True)


# --- Following --------------------------------------------------------------------------------


class Follower:
    """Reads what changes in a feed, once for all its waiting readers in this process."""

    def __init__(self, kind: Kind, show: Show) -> None:
        self.kind = kind
        self._show = show
        self._key = waiters.RUNNER_FEED if kind == Kind.RUNNER else waiters.ENTITY_FEED
        self._lock = threading.Lock()
        self._looking = threading.Lock()
        self._thread: threading.Thread | None = None
        self._feeds: dict[str, Feed] = {}
        self._entries: deque[Entry] = deque()
        self._size = 0
        self._start: tuple[int, int] | None = None
        self._end = (0, 0)
        self._woken = 0
        self._needed_at = 0.0
        self._tidy_at = 0.0

    def serve(self, feed: Feed) -> None:
        """Wake the waiting readers of this feed when it has news."""
        with self._lock:
            self._needed_at = time.monotonic()
            self._feeds[feed.key] = feed
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._run, name=f"pullwake-feed-{self.kind}", daemon=True
                )
                self._thread.start()

    def catch_up(self, place: Place) -> None:
        """Look at once if a reader is past what is known here; one look serves all readers.

        Otherwise a thousand readers that connect together would each ask the database.
        """
        reached = (place.transaction, place.pk)
        if self._start is not None and reached <= self._end:
            return
        connection.close_if_unusable_or_obsolete()  # whoever waits here holds no connection
        with self._looking:
            if self._start is None or reached > self._end:
                self._advance()

    def page(self, sight: Sight, place: Place) -> Page | None:
        """What lies past a place; None if that is not known here."""
        with self._lock:
            reached = (place.transaction, place.pk)
            if self._start is None or not self._start <= reached <= self._end:
                return None
            newer = []
            for entry in reversed(self._entries):
                if entry.place <= reached:
                    break
                newer.append(entry)
            end = self._end
        newer = [entry for entry in reversed(newer) if sight.sees(entry)]
        if any(entry.change.key == "" for entry in newer):
            return None
        page = _page(sight, newer, place)
        if page.up_to_date:
            page = replace(page, next_offset=_pack(Place(*end, place.since)))
        return page

    def _run(self) -> None:
        with waiters.hub.waiter(self._key) as grown:
            while not waiters.hub.closing:
                grown.clear()
                pause = PACE_S
                try:
                    with self._looking:
                        is_settled = self._advance()
                    pause = self.pause(is_settled=is_settled)
                    if not is_settled:
                        grown.set()
                except Exception as exc:  # noqa: BLE001  the next look may do better
                    note_trouble(logger, "following changes failed, and is tried again", exc)
                    pause = _RETRY_S
                    grown.set()
                finally:
                    connection.close()
                grown.after = self._end[0]
                _pause.wait(pause)
                grown.wait(_LOOK_S)
                if self._is_over():
                    return

    def pause(self, *, is_settled: bool) -> float:
        """Seconds until its next look."""
        return max(PACE_S if is_settled else _UNSETTLED_S, self._woken * _EACH_S)

    def _is_over(self) -> bool:
        """Drop readers that are gone, from time to time; whether none is left."""
        if time.monotonic() < self._tidy_at:
            return False
        self._tidy_at = time.monotonic() + _IDLE_S
        waited_for = waiters.hub.waited_for()
        with self._lock:
            self._feeds = {key: each for key, each in self._feeds.items() if key in waited_for}
            if self._feeds or time.monotonic() - self._needed_at < _IDLE_S:
                return False
            self._thread = self._start = None
            self._entries.clear()
            self._size = 0
            return True

    def _advance(self) -> bool:
        """Read what changed: whether everything that was committed could be read."""
        settled = changes.now_settled(self.kind)
        end = (settled.below - 1, _DIGITS - 1)
        if self._start is None or end < self._end:  # the first look, or another database
            self._skip(end)
            return True
        everything = Settled(settled.ahead + _DIGITS, settled.ahead)
        place = Place(*self._end, 0)
        # One query tells what can be read, and whether more exists that cannot be read yet.
        found = list(changes.past(self.kind, place, everything)[: PAGE_EVENTS + 1])
        rows = [each for each in found if each.transaction < settled.below]
        if len(rows) > PAGE_EVENTS:
            self._skip(end)
            return True
        entries = _load(self.kind, rows, self._show)
        with self._lock:
            self._entries.extend(entries)
            self._size += sum(entry.size for entry in entries)
            while self._size > _KEPT_BYTES or len(self._entries) > 10 * PAGE_EVENTS:
                dropped = self._entries.popleft()
                self._size -= dropped.size
                self._start = dropped.place
            self._end = end
            feeds = list(self._feeds.values()) if entries else []
        self._woken = sum(waiters.hub.wake(each.key) for each in _concerned(feeds, entries))
        return len(rows) == len(found)

    def _skip(self, end: tuple[int, int]) -> None:
        """Forget everything before this place: readers there ask the database once."""
        with self._lock:
            self._entries.clear()
            self._size = 0
            self._start = self._end = end
            feeds = list(self._feeds.values())
        self._woken = sum(waiters.hub.wake(each.key) for each in feeds)


def _concerned(feeds: Iterable[Feed], entries: Sequence[Entry]) -> Iterator[Feed]:
    """The feeds whose readers see one of these changes.

    What a caller sees at all is looked up once for all its feeds: it may hold thousands, each with
    filters of its own, and others change thousands of rows.
    """
    theirs: dict[Principal, list[Entry]] = {}
    for feed in feeds:
        sight = feed.sight
        if sight.caller not in theirs:
            whole = Sight(sight.kind, sight.caller)
            theirs[sight.caller] = [each for each in entries if whole.sees(each)]
        if any(map(sight.sees, theirs[sight.caller])):
            yield feed


_pause = threading.Event()
_followers: dict[Kind, Follower] = {}


def _follower(kind: Kind, show: Show) -> Follower:
    return _followers.setdefault(kind, Follower(kind, show))
