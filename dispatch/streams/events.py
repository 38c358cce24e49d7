"""What an event says, as it was sent: it may lack any part, or have anything in its place."""

from core.bodies import JsonObject


def operation_of(event: JsonObject) -> object:
    """Its ``headers.operation``, or None."""
    headers = event.get("headers")
    return headers.get("operation") if isinstance(headers, dict) else None


def value_of(event: JsonObject) -> JsonObject:
    """Its ``value``, empty if that is no object."""
    value = event.get("value")
    return value if isinstance(value, dict) else {}
