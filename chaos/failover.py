"""``python -m chaos.failover``: end the database's leader again and again, then judge what is left.

``make ha``. PostgreSQL is three nodes of Patroni's with synchronous commit, behind HAProxy; the
load and the judge are those of the storm.
"""

import argparse
import asyncio
import itertools
import secrets
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Sets the environment up, first.
from chaos.__main__ import verdict
from chaos.cluster import WHOLE_S, Cluster, Node, missing
from chaos.storm import Storm, said
from tests.support import Database, wait_until

BACK_S = 40.0
"""Seconds from a leader's end until every entity is worked on again. Patroni misses it after 20."""


class Failovers(Storm):
    """Servers, runners and senders, whose database loses its leader."""

    def __init__(
        self, cluster: Cluster, folder: Path, seed: int, say: Callable[[str], None]
    ) -> None:
        super().__init__(Database(cluster.url), folder, seed, say)
        self.cluster = cluster
        self.back_s: list[float] = []

    async def lose_leaders(self, rounds: int) -> None:
        """End one leader after the other, each once the one before it is a standby."""
        faults = [
            self._kill_the_leaders_host,
            self._freeze_the_leaders_host,
            self._kill_the_leaders_postgres,
            self._kill_the_leaders_host_while_no_standby_hears_it,
        ]
        async with self.load():
            for fault in itertools.islice(itertools.cycle(faults), rounds):
                await self._until(lambda: self._worked_since(time.monotonic() - 2), BACK_S)
                leader = self.cluster.leader()
                assert leader is not None
                self.say(f"{said(fault)}, {leader.name}")
                await fault(leader)
                await self._until(self.cluster.is_whole, WHOLE_S)

    async def _kill_the_leaders_host(self, leader: Node) -> None:
        leader.kill()
        await self._note_return(leader)
        leader.start()

    async def _freeze_the_leaders_host(self, leader: Node) -> None:
        """When it comes back it believes that it leads."""
        leader.signal(signal.SIGSTOP)
        await self._note_return(leader)
        leader.signal(signal.SIGCONT)

    async def _kill_the_leaders_postgres(self, leader: Node) -> None:
        leader.signal(signal.SIGKILL, to="postgres")
        await self._note_return(leader)

    async def _kill_the_leaders_host_while_no_standby_hears_it(self, leader: Node) -> None:
        """What it answers meanwhile it alone has, unless it waits for a standby first."""
        standbys = [node for node in self.cluster.nodes if node is not leader]
        for node in standbys:
            node.signal(signal.SIGSTOP, to="receiver")
        await asyncio.sleep(1)
        leader.kill()
        for node in standbys:
            # They end, and do not read what their sockets hold.
            node.signal(signal.SIGTERM, to="receiver")
            node.signal(signal.SIGCONT, to="receiver")
        await self._note_return(leader)
        leader.start()

    async def _note_return(self, former: Node) -> None:
        """Wait until another node leads and every entity has been worked on since."""
        began = time.monotonic()
        leader = await self._until(lambda: self._another(former), WHOLE_S)
        elected = time.monotonic()
        await self._until(lambda: self._worked_since(elected), WHOLE_S)
        self.back_s.append(time.monotonic() - began)
        self.say(f"  {leader.name} leads after {elected - began:.1f} s, work after "
                 f"{self.back_s[-1]:.1f} s")  # fmt: skip

    def _another(self, former: Node) -> Node | None:
        leader = self.cluster.leader()
        return None if leader is former else leader

    def _worked_since(self, since: float) -> bool:
        """Whether a handler of each entity has had an answer since then."""
        worked = {
            fact["entity"]
            for fact in self.evidence.read()
            if fact["fact"] == "appended" and fact["at"] > since
        }
        return worked == {*self.urls}

    async def _until(self, condition: Callable[[], Any], seconds: float) -> Any:
        """Wait for a condition: its first true value."""
        return await asyncio.to_thread(wait_until, condition, timeout=seconds)


async def run(cluster: Cluster, folder: Path, seed: int, rounds: int) -> list[str]:
    """What was broken; says what happens, and how much was seen."""
    async with Failovers(
        cluster, folder, seed, lambda what: print(f"  {what}", flush=True)
    ) as all_:
        await all_.lose_leaders(rounds)
        broken = verdict(all_.evidence, *await all_.settle())
    late = [seconds for seconds in all_.back_s if seconds > BACK_S]
    return broken + [f"It took {seconds:.1f} s to be back, and not {BACK_S}." for seconds in late]


def main() -> int:
    """The exit status: 0 if all promises were kept, 1 if one was broken."""
    parser = argparse.ArgumentParser(prog="make ha", description=__doc__)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--seed", type=int, default=secrets.randbelow(10**6))
    parser.add_argument(
        "--asynchronous", action="store_true", help="wait for no standby, for the judge to see"
    )
    asked = parser.parse_args()
    lacks = missing()
    if lacks:
        print("make ha:", *lacks, file=sys.stderr)
        return 2
    folder = Path(tempfile.mkdtemp(prefix="pullwake-ha-"))
    print(f"ha: {asked.rounds} leaders are lost; logs and evidence: {folder}", flush=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with Cluster(folder, synchronous=not asked.asynchronous) as cluster:
        migrated = Database(cluster.url).manage("migrate", "--verbosity=0")
        assert migrated.returncode == 0, migrated.stderr
        broken = asyncio.run(run(cluster, folder, asked.seed, asked.rounds))
    for sentence in broken:
        print(sentence)
    print("ha:", f"{len(broken)} promises broken" if broken else "every promise kept")
    return bool(broken)


if __name__ == "__main__":
    sys.exit(main())
