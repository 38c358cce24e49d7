"""How the pages write times, ids, states and links; the same in lists and in templates."""

import json
import unicodedata
from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Any, Literal
from urllib.parse import urlencode

from django.contrib.admin.utils import quote
from django.urls import reverse
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString

from core.clock import epoch_ms, span_of
from core.principals import Principal

Tone = Literal["good", "warn", "bad", "info", "idle"]

NOTHING = "-"

# Each tone has a sign, so that a page reads without colour.
SIGNS: dict[Tone, str] = {"good": "✓", "warn": "!", "bad": "✕", "info": "▸", "idle": "○"}

TONES: dict[str, Tone] = {
    "healthy": "good",
    "degraded": "warn",
    "unhealthy": "bad",
    "online": "good",
    "expired": "bad",
    "offline": "idle",
    "enabled": "good",
    "disabled": "idle",
    "active": "info",
    "released": "good",
    "failed": "bad",
    "fenced": "warn",
    "running": "info",
    "stopping": "warn",
    "paused": "warn",
    "idle": "idle",
    "stopped": "idle",
    "killed": "idle",
    "unclaimed": "warn",
    "claimed": "good",
    "withdrawn": "idle",
    "given up": "warn",
    "redriven": "good",
    "valid": "good",
    "revoked": "idle",
    "orphaned": "bad",
    "lapsed": "bad",
    "pending": "info",
    "no runner": "bad",
    "keeps failing": "bad",
    "refused": "warn",
    "due": "info",
    "late": "bad",
    "runs": "good",
}
"""The colour of each state that a page names."""

CALLED = {"outstanding": "unclaimed"}
"""What operators call a state, where it has another name in the contract."""


def tone(state: str) -> Tone:
    return TONES.get(state, "idle")


def counted(number: int, noun: str, plural: str = "") -> str:
    """A number with its noun: 1 claim, 2 claims."""
    return f"{number} {noun if number == 1 else plural or f'{noun}s'}"


def shortened(text: str, length: int) -> str:
    """The text, `plain`, and at most so long."""
    text = plain(text)
    return text if len(text) <= length else f"{text[: length - 1]}…"


_SHOWN = {"\n", "\t", "\u200c", "\u200d"}
"""Control characters that letters, emoji and lines are made with."""


def plain(text: str) -> str:
    """The text, with characters that would turn, hide or command other text made visible."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        each if each in _SHOWN or unicodedata.category(each)[0] != "C" else "�" for each in text
    )


def took(length: timedelta) -> str:
    return milliseconds(length.total_seconds() * 1000)


def milliseconds(value: float | None) -> str:
    """A measured duration: 12 ms, 1.4 s, 3 min."""
    if value is None:
        return NOTHING
    if value < 1000:
        return f"{value:.0f} ms"
    if value < 100_000:
        return f"{value / 1000:.1f} s"
    return span_of(timedelta(milliseconds=value))


def moment(when: datetime | None, now: datetime) -> SafeString | str:
    """A time relative to now, exact on hover: ``3 min ago``, ``in 5 s``."""
    if when is None:
        return NOTHING
    said = f"{span_of(now - when)} ago" if when <= now else f"in {span_of(when - now)}"
    return format_html(
        '<time class="pw-time" datetime="{}" data-now="{}" title="{}">{}</time>',
        when.isoformat(timespec="milliseconds"),
        epoch_ms(now),
        f"{when:%Y-%m-%d %H:%M:%S}.{when.microsecond // 1000:03d} UTC",
        said,
    )


def ident(text: str, url: str | None = None) -> SafeString | str:
    """An id, monospaced, to be copied with one click, and a link where there is a page."""
    if not text:
        return NOTHING
    code = format_html("<code>{}</code>", text)
    if url is not None:
        code = format_html('<a href="{}">{}</a>', url, code)
    return format_html(
        '<span class="pw-id">{}<button type="button" class="pw-copy" data-copy="{}"'
        ' title="Copy" aria-label="Copy {}">'
        '<span class="material-symbols-outlined" aria-hidden="true">content_copy</span>'
        "</button></span>",
        code,
        text,
        text,
    )


def badge(word: str, tone: Tone | None = None, title: str = "") -> SafeString:
    """A state in a word, with its sign and colour; ``tone`` where the word is not in `TONES`."""
    word = CALLED.get(word, word)
    tone = tone or TONES.get(word, "idle")
    return format_html(
        '<span class="pw-badge pw-{}" title="{}"><span aria-hidden="true">{}</span> {}</span>',
        tone,
        title,
        SIGNS[tone],
        word,
    )


def lines(*parts: Any) -> SafeString | str:
    """Several parts, one under the other."""
    said = [part for part in parts if part not in (None, "", NOTHING)]
    if not said:
        return NOTHING
    return format_html(
        '<span class="pw-lines">{}</span>',
        format_html_join("", "<span>{}</span>", ((part,) for part in said)),
    )


def quiet(text: Any) -> SafeString:
    return format_html('<span class="pw-quiet">{}</span>', text)


def sentences(texts: Iterable[str]) -> SafeString:
    return format_html(
        '<ul class="pw-issues">{}</ul>',
        format_html_join("", "<li>{}</li>", ((text,) for text in texts)),
    )


def principal(url: str) -> str:
    """A principal as its key, which is easier to read than its URL."""
    try:
        return Principal.parse(url).key
    except ValueError:
        return url


def page_of(model: str, pk: Any) -> str:
    """The page of a row; ``model`` is as in ``claims_consumerclaim``."""
    return reverse(f"admin:{model}_change", args=(quote(pk),))


def list_of(model: str, **filters: Any) -> str:
    """The list of a model, filtered."""
    return reverse(f"admin:{model}_changelist") + (f"?{urlencode(filters)}" if filters else "")


def verb_url(verb: str, pk: Any) -> str:
    """Where a verb is confirmed for a row; ``verb`` is as in ``runners_runner_disable``."""
    return f"{reverse(f'admin:{verb}')}?{urlencode({'pk': quote(str(pk))})}"


def decoded(data: str) -> Any:
    """What a text says as JSON, or else the text."""
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return data


def readable(event: Any) -> dict[str, Any]:
    """What a page shows of a stream's event: where, when, of which type, and its text."""
    data = decoded(event.data)
    kind = data.get("type", "") if isinstance(data, dict) else ""
    text = json.dumps(data, indent=2, ensure_ascii=False)
    return {
        "offset": event.offset,
        "when": event.created_at,
        "type": kind,
        "text": plain(text[:20_000]),
    }


def runner_link(runner_id: str | None, name: str = "") -> SafeString | str:
    """A runner by its id; a runner that is gone is only named."""
    if runner_id is None:
        return format_html("{} {}", ident(name), quiet("gone")) if name else NOTHING
    return ident(runner_id, page_of("runners_runner", runner_id))


def entity_link(entity_id: int | None, url: str) -> SafeString | str:
    """An entity by its URL; one that was deleted has no page."""
    return ident(url, None if entity_id is None else page_of("dispatch_entity", entity_id))


def claim_link(pk: int, consumer_id: str) -> SafeString | str:
    """A claim by its consumer id."""
    return ident(consumer_id, page_of("claims_consumerclaim", pk))
