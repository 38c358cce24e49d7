"""``python -m chaos``: let a storm rage over a fleet, and judge what it left."""

import argparse
import asyncio
import os
import secrets
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import django

import tests.environment  # noqa: F401  for the servers that it starts, too

os.environ |= {"DJANGO_SETTINGS_MODULE": "config.settings", "PULLWAKE_LOG_LEVEL": "WARNING"}
django.setup()

from chaos.evidence import Evidence  # noqa: E402  Django is set up first
from chaos.judge import Streams, judge  # noqa: E402
from chaos.storm import NO_FENCE, Storm  # noqa: E402
from tests.support import Database, migrated_template  # noqa: E402


async def run(database: Database, folder: Path, seconds: float, seed: int) -> list[str]:
    """What was broken; says what happens, and how much was seen."""
    async with Storm(database, folder, seed, lambda what: print(f"  {what}", flush=True)) as storm:
        await storm.rage(seconds)
        streams, statuses = await storm.settle()
    return verdict(storm.evidence, streams, statuses)


def verdict(evidence: Evidence, streams: Streams, statuses: Mapping[str, str]) -> list[str]:
    """What was broken; says how much was seen."""
    facts = evidence.read()
    counts = Counter(fact["fact"] for fact in facts)
    print(", ".join(f"{counts[fact]} {fact}" for fact in ("sent", "held", "appended")))
    return judge(facts, streams, statuses)


def main() -> int:
    """0 where all promises were kept, 1 where one was broken."""
    parser = argparse.ArgumentParser(prog="make chaos", description=__doc__)
    parser.add_argument("--minutes", type=float, default=2.0)
    parser.add_argument("--seed", type=int, default=secrets.randbelow(10**6))
    parser.add_argument(
        "--broken-fence", action="store_true", help="give epochs again, for the judge to see"
    )
    asked = parser.parse_args()
    if not os.environ.get("DATABASE_URL"):
        parser.error("it needs a PostgreSQL of its own: python -m tests.postgres python -m chaos")
    print(f"chaos: {asked.minutes:g} minutes, --seed {asked.seed}", flush=True)
    folder = Path(tempfile.mkdtemp(prefix="pullwake-chaos-"))
    with migrated_template(folder) as database:
        if asked.broken_fence:
            database.execute(NO_FENCE)
        broken = asyncio.run(run(database, folder, asked.minutes * 60, asked.seed))
    for sentence in broken:
        print(sentence)
    kept = f"{len(broken)} promises broken" if broken else "every promise kept"
    print(f"chaos: {kept}; logs and evidence: {folder}")
    return bool(broken)


if __name__ == "__main__":
    sys.exit(main())
