"""JSON Schemas that a type's registrar gives, and what is checked by them."""

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import msgspec
from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError, best_match
from jsonschema.validators import validator_for
from referencing import Registry
from referencing.exceptions import Unresolvable

from core.errors import InvalidRequest, pointer

# A $ref is never fetched: a schema must not make the server call addresses of its author's choice.
_NOTHING_REMOTE: Registry[Any] = Registry()


def check_schema(schema: Any, path: str) -> None:
    """Raise InvalidRequest for what is not a JSON Schema; ``path`` names the field."""
    try:
        validator_for(schema, default=Draft202012Validator).check_schema(schema)
    except (SchemaError, RecursionError) as exc:
        raise InvalidRequest.field(path, f"not a JSON Schema: {_brief(exc)}") from None


def check(value: Any, schema: Any, path: str) -> None:
    """Raise InvalidRequest with every place in ``value`` that the schema does not allow."""
    validator = _validator(msgspec.json.encode(schema))
    try:
        errors = sorted(validator.iter_errors(value), key=lambda error: list(map(str, error.path)))
    except (Unresolvable, RecursionError) as exc:
        raise InvalidRequest.field(path, f"its schema cannot be followed: {exc}") from None
    if errors:
        raise InvalidRequest(
            f"{path} is not what its type asks for.",
            details=[
                {
                    "path": path + pointer(*error.absolute_path),
                    "message": (best_match([error]) or error).message[:500],
                }
                for error in errors[:100]
            ],
        )


@lru_cache(maxsize=512)
def _validator(schema: bytes) -> Any:
    decoded: Mapping[str, Any] | bool = msgspec.json.decode(schema)
    return validator_for(decoded, default=Draft202012Validator)(decoded, registry=_NOTHING_REMOTE)


def _brief(exc: Exception) -> str:
    return str(getattr(exc, "message", exc))[:500]
