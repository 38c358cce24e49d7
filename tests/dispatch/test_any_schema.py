"""Whatever a type's schemas are: each is taken or refused with a reason, and then holds or not."""

from collections import Counter
from itertools import count
from typing import Any

import hypothesis.strategies as st
import jsonschema_rs
import msgspec
import pytest
from hypothesis import HealthCheck, given, settings

from dispatch.schema_checker import _PATTERNS

TYPES = "/_electric/entity-types"

KEYWORDS = (
    *("type", "enum", "const", "format", "pattern", "minLength", "maxLength", "multipleOf"),
    *("minimum", "exclusiveMaximum", "required", "properties", "patternProperties", "items"),
    *("additionalProperties", "propertyNames", "prefixItems", "contains", "minContains"),
    *("uniqueItems", "allOf", "anyOf", "oneOf", "not", "if", "then", "else", "$ref", "$defs"),
    *("definitions", "dependencies", "dependentSchemas", "dependentRequired", "unevaluatedItems"),
    *("unevaluatedProperties", "$schema", "$id", "$anchor", "$dynamicRef", "contentEncoding"),
)
# What schemas say, and what has stalled or broken validators.
SAID = st.sampled_from(
    [
        *("string", "object", "array", "integer", "null", "date-time", "uri", "regex"),
        *("#", "#/$defs/a", "#/nowhere", "other.json", "http://127.0.0.1:1/x", "urn:x", "a#b"),
        *("^(a+)+$", "a{99999999999999999999}", "(?=x)", "[", "\\p{L}+", "^$", ".*" * 40),
        *(
            "http://json-schema.org/draft-07/schema#",
            "https://json-schema.org/draft/2020-12/schema",
        ),
        *(0, -1, 0.1, 1e308, 10**400, 2**63),
    ]
)
PLAIN = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12)
JSON = st.recursive(
    PLAIN | TEXT | SAID,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=12,
)
SCHEMAS: st.SearchStrategy[Any] = st.deferred(
    lambda: st.booleans() | st.dictionaries(st.sampled_from(KEYWORDS), WITHIN, max_size=5)
)
NAMES = st.sampled_from(["a", "b", "message", ""])
WITHIN: st.SearchStrategy[Any] = st.one_of(
    *(SAID, SAID, JSON, SCHEMAS, st.lists(SCHEMAS, max_size=3)),
    st.dictionaries(NAMES, SCHEMAS, max_size=3),
)
# Those that are schemas, so that values meet them, too.
SANE: st.SearchStrategy[Any] = st.deferred(
    lambda: st.fixed_dictionaries(
        {},
        optional={
            "type": st.sampled_from(["object", "array", "string", "number", "boolean"]),
            "properties": st.dictionaries(NAMES, SANE, max_size=2),
            "items": SANE,
            "enum": st.lists(JSON, min_size=1, max_size=3),
            "pattern": st.sampled_from(["^a", "^(a+)+$", "\\p{L}+"]),
            "multipleOf": st.sampled_from([1, 0.1, 3]),
            "uniqueItems": st.booleans(),
            "anyOf": st.lists(SANE, min_size=1, max_size=2),
            "not": SANE,
            "additionalProperties": SANE | st.booleans(),
        },
    )
)


def holds(value: Any, schema: Any) -> bool | None:
    """What the engine itself says of a value by a schema; None where it says that it cannot."""
    said = [msgspec.json.decode(msgspec.json.encode(each)) for each in (schema, value)]
    try:
        validator = jsonschema_rs.validator_for(
            said[0], validate_formats=False, pattern_options=_PATTERNS, offline=True
        )
    except (ValueError, jsonschema_rs.ReferencingError):
        return None
    return validator.is_valid(said[1])


@pytest.mark.slow
def test_each_is_taken_or_refused_and_holds_or_not(alice):
    numbers = count()
    seen = Counter[tuple[str, bool | None]]()

    def compare(what, answer, expected):
        """A value is taken exactly where the schema it was registered under allows it."""
        assert answer.status in (200, 201, 400), (what, answer)
        seen[what, expected] += 1
        assert (answer.status < 300) is expected, (what, answer)

    @settings(
        max_examples=300,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(schema=SANE | SCHEMAS, other=SANE | SCHEMAS, args=JSON, payload=JSON)
    def each(schema, other, args, payload):
        name = f"t{next(numbers)}"
        facts = {"creation_schema": schema, "inbox_schemas": {"message": other}}
        answer = alice.post(TYPES, {"name": name, "description": "any", **facts})
        assert answer.status in (201, 400), (facts, answer)
        if answer.status == 400:
            seen["schema", False] += 1
            assert answer.error == "INVALID_REQUEST"
            assert "time or memory" not in answer.body["error"]["message"], facts
            return
        seen["schema", True] += 1
        assert None not in (holds({}, schema), holds({}, other)), facts
        url = f"/_electric/entities/{name}/e"
        given = args if isinstance(args, dict) else {"a": args}
        made = alice("PUT", url, {"args": given})
        compare("args", made, holds(given, schema))
        if made.status == 201:
            sent = alice.post(f"{url}/send", {"payload": payload, "type": "message"})
            compare("payload", sent, holds(payload, other))

    each()
    for what in ("schema", "args", "payload"):
        assert min(seen[what, True], seen[what, False]) > 3, seen
