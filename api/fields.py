"""Fields that the bodies of several resources share."""

from typing import Annotated, Any, Literal
from urllib.parse import unquote

from django.http import HttpRequest
from msgspec import UNSET, Meta, UnsetType

from core.bodies import Body
from core.errors import InvalidRequest
from core.principals import Principal

Key = Annotated[str, Meta(min_length=1, max_length=256)]
ManifestKey = Annotated[str, Meta(min_length=1, max_length=1024)]
EntityUrl = Annotated[str, Meta(pattern=r"^/[^/]{1,128}/[^/]{1,128}$(?!\n)")]

RESERVED_TYPES = ("_electric", "_cron", "_entities", "_webhooks", "principal")
"""Entity types whose entities would stand where the API, its streams or principals do."""


class Target(Body, frozen=True, kw_only=True):
    """Where wakes go."""

    type: Annotated[
        Literal["runner"],
        Meta(description="wakes go to runners; webhook targets are not served"),
    ]
    """Always `runner`."""
    runnerId: str  # noqa: N815  as runners write it
    """The runner's id."""


EntityStatus = Literal["idle", "running", "paused", "stopping", "stopped", "killed"]
"""What an entity does: `dispatch.models.DispatchState.status`."""


class DispatchPolicy(Body, frozen=True, kw_only=True):
    """To which runner an entity is dispatched."""

    targets: Annotated[list[Target], Meta(min_length=1, max_length=1)]
    """Exactly one target."""

    @property
    def runner_id(self) -> str:
        """The one runner."""
        return self.targets[0].runnerId


def known(value: Any) -> Any:
    """The value, UNSET when there is none."""
    return UNSET if value is None or value == "" else value


def policy_to(runner_id: str | None) -> DispatchPolicy | UnsetType:
    """The policy that dispatches to this runner, UNSET for none."""
    if runner_id is None:
        return UNSET
    return DispatchPolicy(targets=[Target(type="runner", runnerId=runner_id)])


def is_utf8(request: HttpRequest) -> bool:
    """Whether its address is valid UTF-8 as it was sent: Django re-encodes what is not."""
    try:
        unquote(request.META.get("RAW_URI", "").partition("?")[0], errors="strict")
    except UnicodeDecodeError:
        return False
    return True


def principal_field(text: str, path: str) -> Principal:
    """The principal that a field names. Raises InvalidRequest."""
    try:
        return Principal.parse(text)
    except ValueError as exc:
        raise InvalidRequest.field(path, str(exc)) from None
