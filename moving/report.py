"""What a run found, what it took over, and what not and why."""

from collections import defaultdict
from dataclasses import dataclass, field

from core.bodies import JsonObject

EXAMPLES = 5
"""Of what a reason holds for; the count says how many there are."""


class NotTaken(Exception):
    """A row is not taken over; the message is a sentence that says why."""


@dataclass(slots=True)
class Why:
    """For how many rows a reason holds, and some of them."""

    count: int = 0
    examples: list[str] = field(default_factory=list)

    def add(self, key: str, count: int = 1) -> None:
        """Count a row for which the reason holds."""
        self.count += count
        if key and len(self.examples) < EXAMPLES:
            self.examples.append(key)


@dataclass(slots=True)
class Kind:
    """What became of the rows of one kind.

    ``notes`` are of what was taken, and say what of it was left behind.
    """

    found: int = 0
    taken: int = 0
    here: int = 0
    not_taken: dict[str, Why] = field(default_factory=lambda: defaultdict(Why))
    notes: dict[str, Why] = field(default_factory=lambda: defaultdict(Why))

    def refuse(self, key: str, reason: object) -> None:
        """Report a row that is not taken."""
        self.not_taken[str(reason)].add(key)

    def note(self, key: str, said: str) -> None:
        """Report that something of a row was left behind, though the row was taken."""
        self.notes[said].add(key)


class Report:
    """The report of a run."""

    def __init__(self, *, dry_run: bool) -> None:
        self.dry_run = dry_run
        self.woken = 0
        self.kinds: dict[str, Kind] = {}

    def of(self, kind: str) -> Kind:
        """The part about rows of this kind."""
        return self.kinds.setdefault(kind, Kind())

    def as_json(self) -> JsonObject:
        """The whole report, for a program."""
        return {"dry_run": self.dry_run, "woken": self.woken, "kinds": dict(self.kinds)}

    def lines(self) -> list[str]:
        """The whole report, for a person to read."""
        taken = "would be taken" if self.dry_run else "taken"
        lines = []
        for name, kind in self.kinds.items():
            left = sum(why.count for why in kind.not_taken.values())
            lines.append(
                f"{name}: {kind.found} found, {kind.taken} {taken}, {kind.here} already here, "
                f"{left} not taken"
            )
            for verdict, reasons in (("not taken", kind.not_taken), ("note", kind.notes)):
                for reason, why in reasons.items():
                    of = f": {', '.join(why.examples)}" if why.examples else ""
                    more = ", …" if why.examples and why.count > len(why.examples) else ""
                    lines.append(f"  {verdict}, {why.count}: {reason}{of}{more}")
        lines.append(f"entities {'to be ' if self.dry_run else ''}woken: {self.woken}")
        return lines
