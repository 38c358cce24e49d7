"""Request and response bodies: each declared once, as a msgspec Struct.

The Struct validates what comes in, shapes what goes out, and is what the OpenAPI schema shows.
"""

import json
import re
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from itertools import islice
from typing import Annotated, Any, NoReturn, TypeVar, Union, cast, get_args, get_origin

import msgspec
from django.conf import settings
from django.http import HttpRequest, HttpResponse
from msgspec import Meta, Struct

from core.database import hand_back
from core.errors import InvalidRequest, PayloadTooLarge, UnsupportedMediaType, pointer
from core.identifiers import ID_PATTERN

Id = Annotated[str, Meta(pattern=ID_PATTERN)]
JsonObject = dict[str, Any]
T = TypeVar("T")

MAX_DEPTH = 200
"""How deep arrays and objects may nest: deeper, and what reads a body would run out of stack."""

MOST_NAMED = 100
"""Bad fields that an error names: of a body that has hundreds of thousands, naming all would stop
the worker for seconds, and the answer would be many times the body."""

_MOST_LOOKED_AT = 2_000
"""Items of a list or an object that are looked at for these."""

_EXACT = 2**53
"""Below it a float is the number that was written."""
_MANY_DIGITS = 1000
"""No float has so many; Python takes an integer of four times as many."""

# One escape each, so that a pair and an escaped backslash are passed over; group 1: half a pair.
_ESCAPES = re.compile(
    r"\\(?:u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|(u[dD][89a-fA-F][0-9a-fA-F]{2})|.)",
    re.DOTALL,
)

_decoder = lru_cache(msgspec.json.Decoder)


@dataclass(frozen=True, slots=True)
class Check:
    """Beside a field's type: how its value is parsed, which raises ValueError.

    It is called where another field is bad, so that the error names this one too; where all fields
    have their types, whoever reads the body parses it.
    """

    parse: Callable[[Any], object]


class Body(Struct, frozen=True, omit_defaults=True):
    """A JSON object; optional fields are UNSET when they have no value, and are then left out."""


def raw_body(request: HttpRequest) -> bytes:
    """The bytes of the request's body.

    Raises PayloadTooLarge past PULLWAKE_MAX_BODY_BYTES, UnsupportedMediaType for a body that is not
    declared as JSON (a web page cannot declare that to a foreign server unless CORS allows it), and
    InvalidRequest for a body that was cut short.
    """
    limit: int = settings.PULLWAKE_MAX_BODY_BYTES
    meta = request.META
    length = int(meta.get("CONTENT_LENGTH") or 0)
    if length > limit:
        raise PayloadTooLarge
    hand_back()  # the body may arrive slowly
    if "HTTP_TRANSFER_ENCODING" in meta:
        # Django reads as far as Content-Length, so a chunked body is read from the server itself.
        try:
            body: bytes = meta["wsgi.input"].read(limit + 1)
        except Exception as exc:  # noqa: BLE001  each server has errors of its own for bad chunks
            raise InvalidRequest(f"The body could not be read: {exc}.") from None
        if len(body) > limit:
            raise PayloadTooLarge
        meta["wsgi.input"] = BytesIO(body)  # for a call that is carried out once more
    else:
        body = request.body
        if len(body) < length:
            raise InvalidRequest("The body is shorter than its Content-Length.")
    media_type = meta.get("CONTENT_TYPE", "").partition(";")[0].strip().lower()
    if body and media_type != "application/json":
        raise UnsupportedMediaType
    return body


def clean_text(text: str, limit: int) -> str:
    """A text that is only reported, fit for a database: without NULs, ``limit`` characters."""
    return text.replace("\0", "\N{REPLACEMENT CHARACTER}")[:limit]


def decode(raw: bytes, kind: type[T], *, any_text: bool = False, reports: Sequence[str] = ()) -> T:
    """Decode JSON as a value of ``kind``; unknown keys are ignored.

    Raises InvalidRequest for what is not JSON, is nested deeper than `MAX_DEPTH`, or is not of that
    kind; the details then name every bad field, up to `MOST_NAMED`. No database can store half a
    surrogate pair or a NUL in a string, so both are refused. With ``any_text`` half a pair becomes
    U+FFFD and NULs are left to the caller, for `clean_text`; the same holds for the top-level
    fields named in ``reports``. With either, a number that is too large is infinite, as in
    JavaScript.
    """
    text = ""
    parse = _parsed_infinite if any_text or reports else msgspec.json.decode
    try:
        text = raw.decode()  # the decoder does not look into what it ignores
        if any_text and "\\u" in text:
            text = _ESCAPES.sub(_without_half, text)
        elif reports and "\\u" in text:
            # Half a pair is a NUL from here on: kept in a report, refused elsewhere.
            text = _ESCAPES.sub(_with_nul, text)
        value = _decoded(text, kind, parse)
        if raw.count(b"[") + raw.count(b"{") > MAX_DEPTH and _is_deep(parse(text)):
            raise InvalidRequest("The body is nested too deeply.")
        if not any_text and "\\u0000" in text:
            checked = parse(text)
            if isinstance(checked, dict):
                checked = {name: each for name, each in checked.items() if name not in reports}
            details = list(islice(_nuls(checked, ""), MOST_NAMED))
            if details:
                raise InvalidRequest("A string holds a NUL character.", details=details)
    except msgspec.ValidationError as exc:
        problems = _problems(kind, _whole(_untyped(text, parse)), "")
        details = list(islice(problems, MOST_NAMED))
        raise InvalidRequest(_sentence(details, exc), details=details) from None
    except RecursionError:
        raise InvalidRequest("The body is nested too deeply.") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as exc:
        raise InvalidRequest(f"The body is not JSON: {exc}.") from None
    return value


def read(
    request: HttpRequest,
    kind: type[T],
    *,
    empty: bool = False,
    any_text: bool = False,
    reports: Sequence[str] = (),
) -> T:
    """The request's body as ``kind``; see `raw_body` and `decode`. ``empty``: none is ``{}``."""
    raw = raw_body(request)
    if not raw and empty:
        raw = b"{}"
    return decode(raw, kind, any_text=any_text, reports=reports)


def parameter(request: HttpRequest, name: str) -> str | None:
    """A query parameter.

    Raises InvalidRequest when it is given twice, since either could be meant, or holds a NUL.
    """
    values = request.GET.getlist(name)
    if len(values) > 1:
        raise InvalidRequest.field(f"/{name}", "given more than once")
    if values and "\0" in values[0]:
        raise InvalidRequest.field(f"/{name}", "holds a NUL character")
    return values[0] if values else None


def answer(body: object, status: int = 200, headers: dict[str, str] | None = None) -> HttpResponse:
    """A JSON answer."""
    return HttpResponse(
        msgspec.json.encode(body), status=status, content_type="application/json", headers=headers
    )


def _with_nul(escape: re.Match[str]) -> str:
    return escape[0] if escape[1] is None else "\\u0000"


def _without_half(escape: re.Match[str]) -> str:
    return escape[0] if escape[1] is None else "\\ufffd"


def _parsed_infinite(text: str) -> Any:
    try:
        return msgspec.json.decode(text)
    except msgspec.ValidationError:  # for a number that is out of range
        try:
            return json.loads(text, parse_int=_int_or_float, parse_constant=_refuse)
        except ValueError as exc:
            raise msgspec.DecodeError(str(exc)) from None


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON")


def _int_or_float(digits: str) -> int | float:
    return int(digits) if len(digits) < _MANY_DIGITS else float(digits)


def _decoded(text: str, kind: type[T], parse: Callable[[str], Any]) -> T:
    try:
        value: T = _decoder(cast(Hashable, kind)).decode(text)
    except msgspec.ValidationError:
        # JSON has one kind of number: a client that writes 3e4 or 30000.0 has written an integer.
        value = msgspec.convert(_whole(parse(text)), kind)
    return value


def _whole(value: Any) -> Any:
    """The value, with each float that is a whole number made an integer."""
    if isinstance(value, float):
        return int(value) if value.is_integer() and abs(value) < _EXACT else value
    if isinstance(value, dict):
        return {key: _whole(each) for key, each in value.items()}
    return list(map(_whole, value)) if isinstance(value, list) else value


def _untyped(text: str, parse: Callable[[str], Any]) -> Any:
    try:
        value = parse(text)
    except (msgspec.DecodeError, RecursionError) as exc:
        raise InvalidRequest(f"The body is not JSON that can be kept: {exc}.") from None
    if _is_deep(value):
        raise InvalidRequest("The body is nested too deeply.")
    return value


def _is_deep(value: Any) -> bool:
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        level = [inner for each in level for inner in _inside(each)]
        if not level:
            return False
    return True


def _inside(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()


def _nuls(value: Any, path: str) -> Iterator[dict[str, str]]:
    """Find every string in ``value`` that holds a NUL, as a JSON pointer and a message."""
    if isinstance(value, str) and "\0" in value:
        yield {"path": path, "message": "holds a NUL character"}
    elif isinstance(value, dict):
        for key, each in value.items():
            yield from _nuls(key, path + pointer(key))
            yield from _nuls(each, path + pointer(key))
    elif isinstance(value, list):
        for index, each in enumerate(value):
            yield from _nuls(each, f"{path}/{index}")


def _problems(kind: Any, value: Any, path: str) -> Iterator[dict[str, str]]:
    """Find every field of ``value`` that does not fit ``kind``, as a JSON pointer and a message."""
    own = None
    try:
        msgspec.convert(value, kind)
        for check in _marks(kind, Check):
            check.parse(value)
    except msgspec.ValidationError as exc:
        message = re.sub(r" - at `[^`]*`$", "", str(exc))
        said = (each.description for each in _marks(kind, Meta) if each.description is not None)
        own = {"path": path, "message": ": ".join([message, *said])}
    except ValueError as exc:
        own = {"path": path, "message": str(exc)}
    found = False
    for problem in _problems_inside(_container(kind, value), value, path):
        found = True
        yield problem
    if own is not None and not found:
        yield own


def _marks(kind: Any, mark: type[T]) -> Iterator[T]:
    """What is annotated in ``kind``, in the parts of a union too."""
    if get_origin(kind) is Annotated:
        yield from (each for each in get_args(kind)[1:] if isinstance(each, mark))
    elif get_origin(kind) is Union or isinstance(kind, type(int | str)):
        for each in get_args(kind):
            yield from _marks(each, mark)


def _problems_inside(container: Any, value: Any, path: str) -> Iterator[dict[str, str]]:
    if get_origin(container) is list:
        for index, each in enumerate(value[:_MOST_LOOKED_AT]):
            yield from _problems(get_args(container)[0], each, f"{path}/{index}")
    elif get_origin(container) is dict:
        of_key, of_value = get_args(container)
        for key, each in islice(value.items(), _MOST_LOOKED_AT):
            at = path + pointer(key)
            yield from _problems(of_key, key, at)
            yield from _problems(of_value, each, at)
    elif container is not None:
        for field in msgspec.structs.fields(container):
            if field.encode_name in value:
                yield from _problems(
                    field.type, value[field.encode_name], f"{path}/{field.encode_name}"
                )
            elif field.required:
                yield {"path": f"{path}/{field.encode_name}", "message": "is required"}


def _container(kind: Any, value: Any) -> Any:
    """The Struct, list or dict type in ``kind`` that ``value`` was meant to be, or None."""
    if get_origin(kind) is Annotated:
        return _container(get_args(kind)[0], value)
    if get_origin(kind) is Union or isinstance(kind, type(int | str)):
        return next(filter(None, (_container(each, value) for each in get_args(kind))), None)
    if get_origin(kind) is list:
        return kind if isinstance(value, list) else None
    if get_origin(kind) is dict:
        return kind if isinstance(value, dict) else None
    if not (isinstance(kind, type) and issubclass(kind, Struct) and isinstance(value, dict)):
        return None
    tag = kind.__struct_config__.tag_field
    return kind if tag is None or value.get(tag) == kind.__struct_config__.tag else None


def _sentence(details: list[dict[str, str]], exc: Exception) -> str:
    if not details:
        return f"The body is not valid: {exc}."
    named = ", ".join(each["path"] or "the body" for each in details)
    return f"Not valid: {named}."
