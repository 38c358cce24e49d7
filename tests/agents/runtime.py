"""A stand-in for the TypeScript runtime: it selects, acks and retries exactly as that one does.

It reads the whole main stream, compares offsets as strings, and gives its handler what is not
before the claim's offset. Its done acks the greatest of that offset, the end of what it read, its
own last append's ``Stream-Next-Offset``, and the end of what it handled while it idled.
"""

from collections.abc import Callable
from typing import Any

from tests.support import Claim

STEPS = ("claimed", "minted", "read", "called", "wrote", "returned", "idled", "finishing")
"""Where a test can step in, and where a runtime can crash: in this order."""

CLOSING = ("SIGTERM", "SIGHUP", "SIGSTOP", "SIGINT")


class Crash(Exception):
    """The runtime dies: nothing more is heard of it."""


class Runtime:
    """One runner with one handler, which finishes a run and returns, or sleeps."""

    def __init__(self, api: Any, *, sleeps: bool = False, broken: bool = False) -> None:
        self.api = api
        self.sleeps = sleeps
        """Its handler ends by ``ctx.sleep()``: it does not idle."""
        self.broken = broken
        """Its sandbox is down: it fails before its handler."""
        self.works: Callable[[_Wake, str], object] = lambda wake, kind: None
        """What its handler does besides, in its run."""
        self.steps: dict[str, Callable[[], object]] = {}
        self.handled: set[str] = set()
        """Keys of messages, wakes and signals that a handler saw and came to its end with."""
        self.calls: list[str] = []
        """The wake's type, for each call of the handler."""
        self.claim: Claim | None = None

    def run(self, event: Any = None) -> bool:
        """Claim a wake, and work it off: whether there was one."""
        answer = self.api.try_claim("r1", event)
        if answer.status != 200 or "consumerId" not in answer.body:
            return False
        self.claim = Claim(self.api, answer.body)
        self._step("claimed")
        token = self.claim.mint()
        self._step("minted")
        _Wake(self, self.claim, token).run()
        return True

    def _step(self, name: str) -> None:
        # A hook may set the next one for the same step.
        self.steps.pop(name, lambda: None)()


class _Wake:
    def __init__(self, runtime: Runtime, claim: Claim, token: str) -> None:
        self.runtime, self.claim, self.token = runtime, claim, token
        self.path = claim.body["streamPath"]
        (place,) = [each for each in claim.body["streams"] if each["path"] == self.path]
        self.offset = place["offset"]
        self.acks = [self.offset]
        self.closing = runtime.sleeps

    def run(self) -> None:
        step = self.runtime._step
        if self.runtime.broken:
            self.finish()
            return
        events = self.read()
        step("read")
        self.heed_signals(events)
        fresh = [each for each in events if _is_past(each, self.offset)]
        kind = self.select(fresh)
        if kind is not None:
            self.call(kind, fresh)
        step("returned")
        while not self.closing:
            known = len(events)
            events = self.read()
            fresh = events[known:]
            if self.heed_signals(events):
                self.acks.pop()
                break
            if self.select(fresh) not in ("inbox", "wake") and not self.take_next(look=True):
                # It read on without handling anything, and that is not acked.
                self.acks.pop()
                break
            self.call(self.select(fresh) or "inbox", fresh)
        step("idled")
        self.finish()

    def read(self) -> list[Any]:
        """The whole stream; its end is acked."""
        answer = self.runtime.api.get(f"{self.path}?offset=-1", Electric_Claim_Token=self.token)
        assert answer.status == 200, answer
        assert answer.headers["Stream-Up-To-Date"] == "true"
        self.acks.append(answer.headers["Stream-Next-Offset"])
        self.rows = merged(answer.body)
        events: list[Any] = answer.body
        return events

    def select(self, events: list[Any]) -> str | None:
        """What the handler is called for; None if it is not called."""
        if any(self.is_message(each) for each in events):
            return "inbox"
        if any(each["type"] == "wake" for each in events):
            return "wake"
        return None if events else str(self.claim.body["triggerEvent"])

    def is_message(self, event: Any) -> bool:
        value = event.get("value", {})
        return (
            event["type"] == "inbox"
            and event["headers"]["operation"] in ("insert", "update")
            and ("payload" in value or value.get("mode") in ("queued", "steer"))
            and self.rows.get(("inbox", event["key"]), {"status": "cancelled"}).get("status")
            != "cancelled"
        )

    def call(self, kind: str, events: list[Any]) -> None:
        """The handler: it takes the next queued message, sees these events, and finishes a run."""
        taken = self.take_next()
        self.runtime.calls.append(kind)
        self.runtime._step("called")
        self.append({"type": "run", "key": "r", "value": {}, "headers": {"operation": "insert"}})
        self.runtime._step("wrote")
        self.runtime.works(self, kind)
        delta = {"run_id": "r", "delta": f"{len(self.runtime.calls)}"}
        insert = {"operation": "insert"}
        self.append({"type": "text_delta", "key": "t", "value": delta, "headers": insert})
        self.append(_update("run", "r", {"status": "completed"}))
        seen = {each["key"] for each in events if self.is_message(each) or each["type"] == "wake"}
        waiting = {key for _, key in self.queue()}
        self.runtime.handled |= (seen - waiting) | ({taken} if taken else set())

    def queue(self) -> list[tuple[Any, str]]:
        """Place and key of the messages that wait in the queue, in order."""
        return sorted(
            ((row["position"], place), key)
            for place, ((kind, key), row) in enumerate(self.rows.items())
            if kind == "inbox" and row.get("status") == "pending"
        )

    def take_next(self, *, look: bool = False) -> str | None:
        """Take the next queued message, unless it is held back: its key. Or only look."""
        for _, key in self.queue():
            row = self.rows["inbox", key]
            if row["mode"] == "paused":
                return None
            if not look:
                taken = {"status": "processed", "processed_at": row["timestamp"]}
                row |= taken
                self.append(_update("inbox", key, taken))
            return key
        return None

    def heed_signals(self, events: list[Any]) -> bool:
        """Those unhandled, wherever in the stream; each is then handled, by the entity.

        Whether one of them closes the wake.
        """
        for (kind, key), row in merged(events).items():
            if kind != "signal" or row["status"] != "unhandled":
                continue
            self.closing |= row["signal"] in CLOSING
            handled = {"status": "handled", "handled_by": self.claim.body["entity"]["url"]}
            self.append(_update("signal", key, handled))
            self.runtime.handled.add(key)
        return self.closing

    def append(self, event: Any) -> None:
        answer = self.claim.append(event, token=self.token)
        assert answer.status == 204, answer
        self.appended = answer.headers["Stream-Next-Offset"]

    def finish(self) -> None:
        self.runtime._step("finishing")
        acks = [*self.acks, *([self.appended] if hasattr(self, "appended") else [])]
        answer = self.claim.done(max(acks))
        assert answer.status == 200, answer


def merged(events: list[Any]) -> dict[tuple[str, str], Any]:
    """The rows that a stream's events amount to, by type and key."""
    rows: dict[tuple[str, str], Any] = {}
    for event in events:
        place = event["type"], event["key"]
        if event["headers"]["operation"] == "delete":
            rows.pop(place, None)
        else:
            rows[place] = rows.get(place, {}) | event.get("value", {})
    return rows


def _is_past(event: Any, offset: str) -> bool:
    own = event["headers"].get("offset")
    return own is None or offset in ("", "-1") or own >= offset


def _update(kind: str, key: str, value: Any) -> Any:
    return {"type": kind, "key": key, "value": value, "headers": {"operation": "update"}}
