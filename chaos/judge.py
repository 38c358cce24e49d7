"""The judge compares what was seen with what is there in the end, without asking any server.

Facts, by `chaos.evidence`: *sent* (entity, message), once a send was acknowledged; *held* (entity,
epoch, holder), as a handler begins; *appended* (what it wrote), once that was acknowledged; *heard*
(entity, child), as a parent's handler is given that.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Facts = Sequence[Mapping[str, Any]]
Streams = Mapping[str, Facts]
"""The main stream of each entity, by its URL."""


def judge(facts: Facts, streams: Streams, statuses: Mapping[str, str]) -> list[str]:
    """The promises that were broken, in a sentence each."""
    return [
        *_lost(facts, streams),
        *_held_twice(facts),
        *_written_past_the_fence(streams),
        *_left_behind(statuses),
    ]


def judge_families(
    facts: Facts, streams: Streams, statuses: Mapping[str, str], children: int
) -> list[str]:
    """`judge` for parents, whose streams these are, each of so many children."""
    return [*_told_of(facts, streams, children), *_left_behind(statuses)]


def _told_of(facts: Facts, streams: Streams, children: int) -> Iterable[str]:
    """Each parent was told exactly once what each child answered, and a handler was given that."""
    heard = {(fact["entity"], fact["child"]) for fact in facts if fact["fact"] == "heard"}
    for url, events in streams.items():
        wakes = [event["value"] for event in events if event["type"] == "wake"]
        told = [wake["finished_child"] for wake in wakes if "finished_child" in wake]
        times = Counter(child["url"] for child in told)
        name = url.rpartition("/")[2]
        expected = [f"/child/{name}-{number}" for number in range(children)]
        for child in [*expected, *(times.keys() - set(expected))]:
            if times[child] != (child in expected):
                yield f"{url} was told of {child} {times[child]} times."
            if times[child] and (url, child) not in heard:
                yield f"{url} was told of {child}, and no handler was given that."
        for each in told:
            if (each["run_status"], each.get("response")) != ("completed", each["url"]):
                yield f"{url} was told wrongly: {each}."


def _lost(facts: Facts, streams: Streams) -> Iterable[str]:
    """What was acknowledged is there once, and each message was handled."""
    for url, events in streams.items():
        inbox = Counter(event["key"] for event in events if event["type"] == "inbox")
        written = Counter(event["key"] for event in events if event["type"] == "handled")
        handled = {event["value"]["message"] for event in events if event["type"] == "handled"}
        mine = [fact for fact in facts if fact.get("entity") == url]
        for fact in mine:
            if fact["fact"] == "sent" and inbox[fact["message"]] != 1:
                yield f"{url} has message {fact['message']} {inbox[fact['message']]} times."
            if fact["fact"] == "appended" and written[fact["id"]] != 1:
                times = written[fact["id"]]
                yield f"{url} has {fact['holder']}'s event {fact['id']} {times} times."
        for message in inbox.keys() - handled:
            yield f"{url} has message {message}, which nobody handled."


def _held_twice(facts: Facts) -> Iterable[str]:
    """No epoch had two holders."""
    holders = defaultdict(set)
    for fact in facts:
        if fact["fact"] == "held":
            holders[fact["entity"], fact["epoch"]].add(fact["holder"])
    for (url, epoch), who in holders.items():
        if len(who) > 1:
            yield f"Epoch {epoch} of {url} was held by {', '.join(sorted(who))}."


def _written_past_the_fence(streams: Streams) -> Iterable[str]:
    """No claim wrote after a later one had written."""
    for url, events in streams.items():
        newest = 0
        for event in events:
            if event["type"] != "handled":
                continue
            epoch = event["value"]["epoch"]
            if epoch < newest:
                yield f"{url} took {event['value']['holder']}'s event of {epoch} after {newest}."
            newest = max(newest, epoch)


def _left_behind(statuses: Mapping[str, str]) -> Iterable[str]:
    """No entity is still running once there is nothing to do."""
    for url, status in statuses.items():
        if status != "idle":
            yield f"{url} is {status}, with nothing to do."
