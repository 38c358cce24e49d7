"""The OpenAPI schema, generated from the Structs that validate the bodies.

A property's description is the docstring below its field; `api.described` describes parameters and
headers, and has an example of each body.
"""

import ast
import inspect
import re
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from http import HTTPStatus
from typing import Any, TypeVar

import msgspec
from drf_spectacular.openapi import AutoSchema
from drf_spectacular.utils import OpenApiParameter, OpenApiResponse, extend_schema

from api.described import CODES, EXAMPLES, HEADERS, PARAMETERS, STREAMED
from core.bodies import Body, JsonObject

View = TypeVar("View", bound=Callable[..., Any])

_components: JsonObject = {}

ALIASES = {("Heartbeat", "wakeStreamOffset"), ("Callback", "wake_id"), ("Callback", "generation")}
"""Second names that existing runners write: taken, and not documented, as clients would have both.

A generated client makes one name of ``wakeId`` and ``wake_id``.
"""

_NEVER_SET = {("Grant", "expires_at")}
"""Fields that are null or left out, for which generators have no type."""

_DROPPED = {"a", "an", "the", "caller"}


class ErrorDetail(Body, frozen=True, kw_only=True):
    """One bad field, by JSON pointer."""

    path: str
    """The field, as a JSON pointer into the body: `/lease_ms`."""
    message: str
    """What is wrong with it."""


class ErrorFacts(Body, frozen=True, kw_only=True):
    """What went wrong."""

    code: str
    """What went wrong, for programs."""
    message: str
    """The same in a sentence, for people; it may change."""
    details: list[ErrorDetail] | JsonObject | msgspec.UnsetType = msgspec.UNSET
    """Of INVALID_REQUEST every bad field; of DUPLICATE_URL the entity that is there."""


class ErrorBody(Body, frozen=True, kw_only=True):
    """Every error of every endpoint."""

    error: ErrorFacts
    """What went wrong."""


class Schema(AutoSchema):
    """drf-spectacular's, with an operation named for what it does."""

    def get_operation_id(self) -> str:
        """For instance ``registerRunner``."""
        method = getattr(self.view, self.method.lower())
        return str(getattr(self.view, "operation", None) or method.operation)

    def get_tags(self) -> list[str]:
        """The resource."""
        return [type(self.view).__module__.rpartition(".")[2]]

    def map_renderers(self, attribute: str) -> list[str]:
        """Every answer is JSON, unless `documented` says otherwise."""
        return ["application/json"]

    def get_auth(self) -> list[JsonObject]:
        """Either kind of token may be sent as a bearer; development mode needs none."""
        return [{"accessToken": []}, {"claimToken": []}, {}]


COMMON_ERRORS = (400, 401, 403, 404, 413, 415, 429, 500, 503)


def documented(
    summary: str,
    *,
    body: Any = None,
    answers: Mapping[int | tuple[int, str], Any],
    errors: Iterable[int] = (),
    parameters: Iterable[str] = (),
    headers: Iterable[str] = (),
    sends: Iterable[str] = (),
    operation: str = "",
) -> Callable[[View], View]:
    """Document what an endpoint takes and answers; None as an answer means that it has no body.

    A tuple of kinds is one of several; a status with a media type is an answer in that type instead
    of JSON, or besides. ``errors`` are statuses besides `COMMON_ERRORS`; ``parameters`` and
    ``headers`` are named strings that may be sent, ``sends`` the headers of the answer.
    ``operation`` is its name in generated clients, unless ``summary`` makes a good one.
    """
    refusals = sorted({*COMMON_ERRORS, *errors})
    responses: dict[Any, Any] = {
        status: OpenApiResponse(_error_schema(), HTTPStatus(status).phrase) for status in refusals
    }
    for status, kind in answers.items():
        phrase = HTTPStatus(status if isinstance(status, int) else status[0]).phrase
        responses[status] = OpenApiResponse(None if kind is None else _schema(kind), phrase)
    described = extend_schema(
        summary=summary,
        request=None if body is None else {"application/json": _schema(body)},
        responses=responses,
        parameters=[
            *(OpenApiParameter(name, str, OpenApiParameter.QUERY) for name in parameters),
            *(OpenApiParameter(name, str, OpenApiParameter.HEADER) for name in headers),
            *map(partial(_sent, statuses=_statuses(answers)), sends),
            _sent("X-Request-Id", [*_statuses(answers), *refusals]),
            _sent("WWW-Authenticate", [401]),
            _sent("Retry-After", [429, 503]),
        ],
    )

    def name(view: View) -> View:
        view.verb = summary  # type: ignore[attr-defined]  # what a line of the log calls it
        view.operation = operation or _camel(summary)  # type: ignore[attr-defined]
        return described(view)

    return name


def complete(result: JsonObject, **kwargs: Any) -> JsonObject:
    """drf-spectacular's postprocessing hook: the Structs that are referred to, and what all is."""
    components = result.setdefault("components", {})
    components.setdefault("schemas", {}).update(_components)
    components["securitySchemes"] = {
        "accessToken": {
            "type": "http",
            "scheme": "bearer",
            "description": "An access token that this server issued.",
        },
        "claimToken": {
            "type": "apiKey",
            "in": "header",
            "name": "Electric-Claim-Token",
            "description": "A claim's token, or its write token; either may come as a bearer, too.",
        },
    }
    for name, kind in _bodies():
        if name in components["schemas"]:
            _describe(name, kind, components["schemas"][name])
    components["schemas"]["ErrorFacts"]["properties"]["code"]["enum"] = sorted(CODES)
    for path, operations in result["paths"].items():
        for operation in operations.values():
            _describe_operation(path, operation)
    _mend(result)
    return result


def _describe(name: str, kind: type[Body], schema: JsonObject) -> None:
    """Add the descriptions of its class's fields to a component, and an example."""
    properties = schema.get("properties", {})
    for field, text in attribute_docstrings(kind).items():
        if (name, field) in ALIASES | _NEVER_SET:
            properties.pop(field, None)
        elif field in properties:
            properties[field]["description"] = text
    tag = kind.__struct_config__.tag_field
    if tag in properties:
        properties[tag]["description"] = "Which kind this is."
    if name in EXAMPLES:
        schema["examples"] = [EXAMPLES[name]]


def attribute_docstrings(kind: type[Body]) -> dict[str, str]:
    """The docstring below each field of a Struct, by the field's name on the wire.

    Those of the Struct that it extends, too.
    """
    names = {each.name: each.encode_name for each in msgspec.structs.fields(kind)}
    (body,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    assert isinstance(body, ast.ClassDef)  # noqa: S101  it is the source of a class
    (extended,) = kind.__bases__
    found = (
        attribute_docstrings(extended)
        if issubclass(extended, Body) and extended is not Body
        else {}
    )
    for statement, below in zip(body.body, body.body[1:], strict=False):
        match statement, below:
            case (
                ast.AnnAssign(target=ast.Name(id=name)),
                ast.Expr(value=ast.Constant(value=str(text))),
            ) if name in names:
                found[names[name]] = " ".join(text.split())
    return found


def _bodies(kind: type[Body] = Body) -> Iterator[tuple[str, type[Body]]]:
    for each in kind.__subclasses__():
        yield each.__name__, each
        yield from _bodies(each)


def _describe_operation(path: str, operation: JsonObject) -> None:
    for parameter in operation.get("parameters", ()):
        name = parameter["name"]
        if name == "name" and path.startswith("/_electric/entity-types/"):
            name = "type_name"
        if name in PARAMETERS:
            parameter["description"], parameter["example"] = PARAMETERS[name]
        # The address pattern is Django's, and unknown to other engines.
        parameter["schema"].pop("pattern", None)
    for status, answer in operation["responses"].items():
        for name, header in answer.get("headers", {}).items():
            header["description"] = HEADERS.get(name, "")
        if status == "200":
            _exemplify(operation, answer)
    _exemplify(operation, operation.get("requestBody", {}))


def _exemplify(operation: JsonObject, body: JsonObject) -> None:
    for media_type, content in body.get("content", {}).items():
        example = STREAMED.get((operation["operationId"], media_type))
        if example is not None:
            content["example"] = example


def _mend(schema: Any) -> None:
    """Rewrite it so that every generator understands it."""
    if isinstance(schema, list):
        for each in schema:
            _mend(each)
    elif isinstance(schema, dict):
        for each in schema.values():
            _mend(each)
        if schema.get("enum") == [True]:
            schema |= {"type": "boolean", "const": schema.pop("enum")[0]}
        if schema.get("type") == "integer":
            # Times in milliseconds and change numbers: Go would silently use 32 bits.
            schema.setdefault("format", "int64")
        if schema.get("type") == "array":
            schema.setdefault("items", {})
        if isinstance(schema.get("pattern"), str):
            # For Python alone, whose `$` matches before a last newline.
            schema["pattern"] = schema["pattern"].replace(r"(?!\n)", "")


def _camel(summary: str) -> str:
    words = [each for each in re.findall("[a-z]{2,}|a", summary.lower()) if each not in _DROPPED]
    return str(words[0]) + "".join(map(str.capitalize, words[1:]))


def _statuses(answers: Mapping[int | tuple[int, str], Any]) -> list[int]:
    return [each if isinstance(each, int) else each[0] for each in answers]


def _sent(name: str, statuses: list[int]) -> OpenApiParameter:
    return OpenApiParameter(name, str, OpenApiParameter.HEADER, response=statuses)


def _schema(kind: Any) -> JsonObject:
    if isinstance(kind, tuple):
        return {"anyOf": [_schema(each) for each in kind]}
    (schema,), components = msgspec.json.schema_components(
        [kind], ref_template="#/components/schemas/{name}"
    )
    _components.update(components)
    return schema


def _error_schema() -> JsonObject:
    return _schema(ErrorBody)
