"""What changed about runners and entities, in an order that readers can follow: the only writer.

A change has a *place*: the number of the transaction that made it, and the key of its row. On
PostgreSQL transactions do not end in the order of their numbers, and no writer should wait for
another. So a reader takes only what lies below the oldest transaction that is still running
(`now_settled`): nothing can appear there any more. On SQLite writers follow each other, and the
number is a counter. A reader also remembers the transaction below which it first looked
(``since``): rows that it lost sight of before then, it never had.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from django.db import connection, transaction
from django.db.models import BigIntegerField, F, Func, Q, Sum
from django.db.models.functions import Now

from core.clock import epoch_ms, with_now
from core.database import can_skip_locked
from core.prepared import Param, Select, Update
from runners.models import Change

Kind = Change.Kind


class Transaction(Func):
    """The number of the current transaction, in the order of a feed of this kind."""

    output_field = BigIntegerField()

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def as_postgresql(self, compiler: Any, connection: Any, **context: Any) -> Any:
        """The number is never reused, like those that rows carry."""
        return "pg_current_xact_id()::text::bigint", []

    def as_sqlite(self, compiler: Any, connection: Any, **context: Any) -> Any:
        """One more than the largest so far; the newest row of a kind is never pruned."""
        newest = f"""SELECT MAX("transaction") FROM runners_change WHERE kind = '{self.kind}'"""  # noqa: S608
        return f"COALESCE(({newest}), 0) + 1", []


def _newest(kind: str) -> Any:
    return Change.objects.filter(kind=kind, key=Param("key"), departed=False)


_MOVE = {
    kind: Update(partial(_newest, kind), transaction=Transaction(kind), changed_at=Now())
    for kind in Kind
}


def note(kind: str, key: str) -> bool:
    """Note that a row in the feed changed: False if the feed has no such row."""
    return bool(_MOVE[Kind(kind)].count(key=key))


def note_all(kind: str, keys: Collection[str]) -> set[str]:
    """`note` for each of these rows, in one statement: which of them the feed does not have.

    The caller holds a lock of each that whoever else notes or writes it waits for.
    """
    rows = Change.objects.filter(kind=kind, key__in=keys, departed=False)
    if rows.update(transaction=Transaction(kind), changed_at=Now()) == len(keys):
        return set()
    return set(keys).difference(rows.values_list("key", flat=True))


_KNOWN = Select(lambda: Change.objects.filter(kind=Param("kind"), key=Param("key"), departed=False))


def write(kind: str, key: str, **facts: Any) -> None:
    """Note that a row changed, new or not, and set these columns of it.

    The caller holds a lock that keeps others from creating the same row. Readers that could see a
    former row by this key, and cannot see the new one, are told that it is gone.
    """
    before = _KNOWN.first(kind=kind, key=key)
    here: dict[str, Any] = {"transaction": Transaction(kind), "changed_at": Now()}
    if before is None:
        # Only if a server of the previous version created the row can two heartbeats race here.
        new = Change(kind=kind, key=key, **here, **facts)
        Change.objects.bulk_create([new], ignore_conflicts=True)
        return
    for owner in {before.owner, before.other_owner} - {""}:
        if owner not in (
            facts.get("owner", before.owner),
            facts.get("other_owner", before.other_owner),
        ):
            # Not as the former row had it: who manages its type still sees the new one.
            registration = facts.get("registration", before.registration)
            depart(kind, owner, key, type=before.type, registration=registration)
    Change.objects.filter(pk=before.pk).update(gone=False, **here, **facts)


def write_all(kind: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """`write` for each of these rows, in few statements if they are new; ``key`` is a fact."""
    keys = [facts["key"] for facts in rows]
    before = Change.objects.filter(kind=kind, key__in=keys, departed=False)
    known = set(before.values_list("key", flat=True))
    here: dict[str, Any] = {"kind": kind, "transaction": Transaction(kind), "changed_at": Now()}
    new = [Change(**here, **facts) for facts in rows if facts["key"] not in known]
    Change.objects.bulk_create(new)
    for facts in rows:
        if facts["key"] in known:
            write(kind, **facts)


def end_sight(keys: Collection[str]) -> None:
    """Note that entities have no runner any more: its owner, where another's, sees them no longer.

    The caller holds a lock of each that whoever else notes or writes it waits for.
    """
    kind = Kind.ENTITY
    rows = Change.objects.filter(kind=kind, key__in=keys, departed=False)
    here: dict[str, Any] = {"transaction": Transaction(kind), "changed_at": Now()}
    seen = rows.exclude(other_owner="").values_list("key", "other_owner", "type", "registration")
    Change.objects.bulk_create(
        Change(
            kind=kind,
            key=key,
            owner=owner,
            type=of_type,
            registration=registration,
            departed=True,
            **here,
        )
        for key, owner, of_type, registration in seen
    )
    rows.update(other_owner="", gone=False, **here)


def tell(told: str, runner_ids: Collection[str]) -> int:
    """Tell the feed this about runners that it has: about how many.

    It leaves out what is said already, and rows that another transaction holds: two servers that
    tell at once each tell a part, and none waits.
    """
    rows = Change.objects.filter(kind=Kind.RUNNER, departed=False, gone=False).exclude(told=told)
    locking = rows.select_for_update(no_key=True, skip_locked=can_skip_locked())
    with transaction.atomic():
        free = locking.filter(key__in=runner_ids).values_list("pk", flat=True)
        return Change.objects.filter(pk__in=list(free)).update(
            told=told, transaction=Transaction(Kind.RUNNER), changed_at=Now()
        )


def remove(kind: str, key: str) -> None:
    """The row is deleted."""
    Change.objects.filter(kind=kind, key=key, departed=False).update(
        gone=True, transaction=Transaction(kind), changed_at=Now()
    )


def retag(key: str) -> None:
    """An entity's tags changed: it may no longer match what readers ask for."""
    kind = Kind.ENTITY
    Change.objects.filter(kind=kind, key=key, departed=False).update(
        retagged=Transaction(kind), transaction=Transaction(kind), changed_at=Now()
    )


def depart(kind: str, owner: str, key: str = "", **facts: Any) -> None:
    """A principal, or each of a kind, no longer sees the row; without a key it must reread all."""
    Change.objects.create(
        kind=kind, key=key, owner=owner, departed=True, transaction=Transaction(kind), **facts
    )


# --- Reading ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, order=True)
class Place:
    """Where a reader of a feed is: past which change, and since which transaction it reads."""

    transaction: int
    pk: int
    since: int


@dataclass(frozen=True, slots=True)
class Settled:
    """All transactions below ``below`` have ended; none from ``ahead`` on has begun."""

    below: int
    ahead: int


# Transactions are numbered for the whole server. One of another database holds nobody back here,
# nor does one that has ended meanwhile: its lock is looked for first, as that goes last.
_SETTLED = """
SELECT COALESCE(MIN(number), ahead), ahead
FROM (
    SELECT pg_snapshot_xmax(now)::text::bigint AS ahead, other.number
    FROM pg_current_snapshot() AS now
    LEFT JOIN LATERAL (
        SELECT under_way::text::bigint AS number
        FROM pg_snapshot_xip(now) AS under_way
        WHERE CASE
            WHEN EXISTS (
                SELECT FROM pg_locks JOIN pg_stat_activity USING (pid)
                WHERE locktype = 'transactionid' AND mode = 'ExclusiveLock' AND granted
                    AND transactionid = under_way::xid AND datname <> current_database()
            ) THEN false
            ELSE pg_xact_status(under_way) = 'in progress'
        END
    ) AS other ON true
) AS found
GROUP BY ahead
"""


def now_settled(kind: str) -> Settled:
    """How far a feed can be read now."""
    with connection.cursor() as cursor:
        if connection.vendor == "postgresql":
            cursor.execute(_SETTLED)
            return Settled(*cursor.fetchone())
        cursor.execute(
            'SELECT COALESCE(MAX("transaction"), 0) + 1 FROM runners_change WHERE kind = %s', [kind]
        )
        (ahead,) = cursor.fetchone()
        return Settled(ahead, ahead)


@dataclass(frozen=True, slots=True)
class Mark:
    """What somebody has seen of a kind: all below a transaction, and from there on this sum.

    The sum is that of the transactions of what changed. It differs once another change is visible,
    in whatever order transactions end.
    """

    below: int
    beyond: int


def mark(kind: str, key: str = "") -> Mark:
    """What can be seen now, of one row or of all: two statements."""
    below = now_settled(kind).below
    return Mark(below, _beyond(kind, key, below))


def is_passed(seen: Mark, kind: str, key: str = "") -> bool:
    """Whether a row, or any, changed since it was marked: one statement."""
    return _beyond(kind, key, seen.below) != seen.beyond


def _beyond(kind: str, key: str, below: int) -> int:
    rows = Change.objects.filter(kind=kind, transaction__gte=below)
    if key:
        rows = rows.filter(key=key)
    return int(rows.aggregate(n=Sum("transaction"))["n"] or 0)


def past(kind: str, place: Place, settled: Settled) -> Any:
    """The changes past a place that can be read, in order."""
    later = Q(transaction__gt=place.transaction) | Q(pk__gt=place.pk)
    return Change.objects.filter(
        later,
        kind=kind,
        transaction__gte=place.transaction,
        transaction__lt=settled.below,
    ).order_by("transaction", "pk")


def over(before: Any) -> Any:
    """What may be pruned: rows that left a feed before this time, except the newest one.

    The newest marks how far back readers may have missed something (`claims.feeds`). A row that
    grows old only while this is pruned is past that mark, and stays.
    """
    left = Change.objects.filter(Q(gone=True) | Q(departed=True), changed_at__lt=before)
    passed = Q(pk__in=[])
    for kind in Kind:
        newest = left.filter(kind=kind).order_by("-transaction", "-pk").first()
        if newest is None:
            continue
        passed |= Q(kind=kind, transaction__lte=newest.transaction)
        marked = Change.objects.filter(kind=kind, departed=True, owner="")
        if marked.filter(pk=newest.pk).exists():
            continue
        marked.delete()
        Change.objects.create(
            kind=kind, key="", owner="", departed=True, transaction=newest.transaction
        )
        Change.objects.filter(kind=kind, departed=True, owner="").update(
            changed_at=newest.changed_at
        )
    return left.filter(passed).exclude(departed=True, owner="")


def start_over() -> None:
    """After a restore: skip the numbers counted since the backup, so that none is used twice.

    PostgreSQL numbers transactions itself, and may start over: all present rows then come first.
    """
    if connection.vendor == "postgresql":
        Change.objects.update(transaction=0, retagged=0)
        return
    newest = with_now(Change.objects.all()).first()
    if newest is not None:
        Change.objects.update(transaction=F("transaction") + epoch_ms(newest.now))
