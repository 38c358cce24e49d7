"""``python -m chaos``: let a storm rage over a fleet, then judge what it left."""

import argparse
import asyncio
import os
import secrets
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import django

import tests.environment  # noqa: F401  for the servers that it starts, too

os.environ |= {"DJANGO_SETTINGS_MODULE": "config.settings", "PULLWAKE_LOG_LEVEL": "WARNING"}
django.setup()

from chaos.evidence import Evidence  # noqa: E402  Django is set up first
from chaos.families import FORGET, Families  # noqa: E402
from chaos.judge import Facts, Streams, judge, judge_families  # noqa: E402
from chaos.runner import CHILDREN  # noqa: E402
from chaos.storm import NO_FENCE, Storm  # noqa: E402
from tests.support import migrated_template  # noqa: E402

Judge = Callable[[Facts, Streams, Mapping[str, str]], list[str]]


async def run(storm: Storm, seconds: float, judges: Judge = judge) -> list[str]:
    """What was broken; says how much was seen."""
    async with storm:
        await storm.rage(seconds)
        streams, statuses = await storm.settle()
    return verdict(storm.evidence, streams, statuses, judges)


def verdict(
    evidence: Evidence, streams: Streams, statuses: Mapping[str, str], judges: Judge = judge
) -> list[str]:
    """What was broken; says how much was seen."""
    facts = evidence.read()
    counts = Counter(fact["fact"] for fact in facts)
    print(", ".join(f"{count} {fact}" for fact, count in sorted(counts.items())))
    return judges(facts, streams, statuses)


def say(what: str) -> None:
    """Say what happens."""
    print(f"  {what}", flush=True)


def main() -> int:
    """The exit status: 0 if all promises were kept, 1 if one was broken."""
    parser = argparse.ArgumentParser(prog="make chaos", description=__doc__)
    parser.add_argument("--minutes", type=float, default=2.0)
    parser.add_argument("--seed", type=int, default=secrets.randbelow(10**6))
    parser.add_argument(
        "--families",
        type=int,
        metavar="N",
        help=f"N parents that spawn {CHILDREN} children each, until each has heard of each, or"
        " --minutes have passed",
    )
    parser.add_argument(
        "--broken-fence", action="store_true", help="give epochs again, for the judge to see"
    )
    parser.add_argument(
        "--broken-memory",
        action="store_true",
        help="tell parents of work that is done over again, for the judge to see",
    )
    asked = parser.parse_args()
    if not os.environ.get("DATABASE_URL"):
        parser.error("it needs a PostgreSQL of its own: python -m tests.postgres python -m chaos")
    print(f"chaos: {asked.minutes:g} minutes, --seed {asked.seed}", flush=True)
    folder = Path(tempfile.mkdtemp(prefix="pullwake-chaos-"))
    with migrated_template(folder) as database:
        if asked.broken_fence:
            database.execute(NO_FENCE)
        if asked.broken_memory:
            database.execute(FORGET)
        storm = Storm(database, folder, asked.seed, say)
        judges: Judge = judge
        if asked.families:
            storm = Families(database, folder, asked.seed, say, asked.families)
            judges = partial(judge_families, children=CHILDREN)
        broken = asyncio.run(run(storm, asked.minutes * 60, judges))
    for sentence in broken:
        print(sentence)
    kept = f"{len(broken)} promises broken" if broken else "every promise kept"
    print(f"chaos: {kept}; logs and evidence: {folder}")
    return bool(broken)


if __name__ == "__main__":
    sys.exit(main())
