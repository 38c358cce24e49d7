"""The OpenAPI schema, made of the same Structs that validate the bodies."""

from collections.abc import Callable, Iterable, Mapping
from http import HTTPStatus
from typing import Any, TypeVar

import msgspec
from drf_spectacular.openapi import AutoSchema
from drf_spectacular.utils import OpenApiParameter, OpenApiResponse, extend_schema

from core.bodies import Body, JsonObject

View = TypeVar("View", bound=Callable[..., Any])

_components: JsonObject = {}


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
    """drf-spectacular's, with an operation named after its view and method."""

    def get_operation_id(self) -> str:
        """For instance ``Heartbeat_post``."""
        return f"{type(self.view).__name__.removesuffix('View')}_{self.method.lower()}"

    def get_tags(self) -> list[str]:
        """The app."""
        return [type(self.view).__module__.partition(".")[0]]

    def map_renderers(self, attribute: str) -> list[str]:
        """Every answer is JSON, but where `documented` says otherwise."""
        return ["application/json"]

    def get_auth(self) -> list[JsonObject]:
        """Either kind of token may come as a bearer; development mode takes none."""
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
) -> Callable[[View], View]:
    """Say what an endpoint takes and answers; None as an answer means that it has no body.

    A tuple of kinds is one of several; a status with a media type is an answer in that one instead
    of JSON, or besides. ``errors`` are statuses besides `COMMON_ERRORS`; ``parameters`` and
    ``headers`` are named strings that may be sent.
    """
    responses: dict[Any, Any] = {
        status: OpenApiResponse(_error_schema(), HTTPStatus(status).phrase)
        for status in sorted({*COMMON_ERRORS, *errors})
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
        ],
    )

    def name(view: View) -> View:
        view.verb = summary  # type: ignore[attr-defined]  # what a line of the log calls it
        return described(view)

    return name


def add_components(result: JsonObject, **kwargs: Any) -> JsonObject:
    """drf-spectacular's postprocessing hook: the Structs that the endpoints refer to."""
    components = result.setdefault("components", {})
    components.setdefault("schemas", {}).update(_components)
    components["securitySchemes"] = {
        "accessToken": {"type": "http", "scheme": "bearer"},
        "claimToken": {"type": "apiKey", "in": "header", "name": "Electric-Claim-Token"},
    }
    return result


def _schema(kind: Any) -> JsonObject:
    if isinstance(kind, tuple):
        return {"oneOf": [_schema(each) for each in kind]}
    (schema,), components = msgspec.json.schema_components(
        [kind], ref_template="#/components/schemas/{name}"
    )
    _components.update(components)
    return schema


def _error_schema() -> JsonObject:
    return _schema(ErrorBody)
