"""Families: parents hear of each of their children, while servers and runners are killed."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from chaos.runner import CHILDREN
from chaos.storm import RUNNERS, SETTLE_S, Storm

AT_ONCE = 8
"""Calls in flight where there are thousands to make."""
FORGET = """
CREATE FUNCTION forget() RETURNS trigger LANGUAGE plpgsql AS
$$ BEGIN NEW.told_given := NULL; RETURN NEW; END $$;
CREATE TRIGGER forget BEFORE UPDATE ON dispatch_registration FOR EACH ROW EXECUTE FUNCTION forget();
"""
"""Breaks the memory: of which work a parent was told is forgotten, and it is told of it again."""


class Families(Storm):
    """The storm over parents, which spawn children that finish one run each."""

    kind = "parent"

    async def _make_entities(self) -> None:
        await self._each(self.urls, self._make_parent)

    async def _make_parent(self, url: str, number: int) -> None:
        await self._make(url, f"r{number % RUNNERS}", initialMessage="go")

    async def rage(self, seconds: float) -> None:
        """Let things happen until all is done, for at most this long."""
        over = asyncio.get_running_loop().time() + seconds
        while asyncio.get_running_loop().time() < over:
            heard, busy = await asyncio.to_thread(self._progress)
            self.say(f"{heard} children are heard of, {busy} entities are busy")
            if heard == CHILDREN * len(self.urls):
                break
            await self._let_something_happen()
        self.say("it is over; what is left to do is waited for")

    def happenings(self) -> list[Callable[[], Awaitable[None]]]:
        """Servers and runners are killed and stopped, and now and then the database crashes."""
        return [
            *[self._kill_a_server] * 3,
            *[self._kill_a_runner] * 4,
            self._stop_a_server,
            self._freeze_a_runner,
            self._crash_the_database,
        ]

    async def settle(self) -> tuple[dict[str, Any], dict[str, str]]:
        """The parents' streams, and the statuses of all entities, once all is done or too long has
        passed.
        """
        patience = SETTLE_S
        while patience > 0:
            before = await asyncio.to_thread(self._progress)
            if not before[1]:
                break
            await asyncio.sleep(1)
            patience = (
                SETTLE_S if await asyncio.to_thread(self._progress) != before else patience - 1
            )
        streams: dict[str, Any] = {}

        async def read(url: str, _: int) -> None:
            streams[url] = (await self.http.get(f"{url}/main?offset=-1", timeout=30)).json()

        await self._each(self.urls, read)
        return streams, await self._statuses()

    async def _statuses(self) -> dict[str, str]:
        statuses: dict[str, str] = {}
        page = "/_electric/entities"
        while page:
            answer = await self.http.get(page, timeout=60)
            statuses |= {each["url"]: each["status"] for each in answer.json()}
            page = answer.links.get("next", {}).get("url", "")
        return statuses

    def _progress(self) -> tuple[int, int]:
        """How many children the parents have heard of, and how many entities have work."""
        ((heard, busy),) = self.database.execute(
            "SELECT (SELECT count(DISTINCT data::jsonb #>> '{value,finished_child,url}')"
            " FROM dispatch_streamevent WHERE data LIKE '%%\"finished_child\"%%'),"
            " (SELECT count(*) FROM dispatch_dispatchstate WHERE active_epoch IS NOT NULL"
            " OR outstanding_wake_id IS NOT NULL OR last_work_offset > cursor)"
        )
        return heard, busy

    async def _each(self, urls: Iterable[str], act: Callable[[str, int], Awaitable[None]]) -> None:
        """Call ``ask`` for each URL, a few at a time."""
        places = asyncio.Semaphore(AT_ONCE)

        async def one(url: str, number: int) -> None:
            async with places:
                await act(url, number)

        await asyncio.gather(*[one(url, number) for number, url in enumerate(urls)])
