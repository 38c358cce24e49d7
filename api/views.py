"""What every API view shares: Django REST framework, without what JSON alone does not need."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, NoReturn, cast

from django.conf import settings
from django.contrib.admin.models import DELETION
from django.db import transaction
from django.db.models import Model
from django.http import HttpRequest, HttpResponse
from django.http.response import HttpResponseBase
from rest_framework.negotiation import DefaultContentNegotiation
from rest_framework.permissions import SAFE_METHODS
from rest_framework.request import Request
from rest_framework.views import APIView

from api import origins, throttles
from api.authentication import RunnerAuthentication, caller_name
from api.permissions import IsAuthenticated, MayReadOrAct, OwnsRunner
from core import audit, log_facts, tracing
from core.bodies import raw_body
from core.database import commits, hand_back, was_undone
from core.errors import Forbidden, Unauthenticated
from core.principals import Principal
from dispatch import entities
from dispatch.models import Entity
from runners import registry
from runners.models import Runner

_NEGOTIATOR = DefaultContentNegotiation()
"""Never asked, as there are no renderers; DRF would make one for each request."""


class ApiView(APIView):
    """A view that reads with `core.bodies.read` and answers with `core.bodies.answer`.

    Its authentication, permission and throttle classes are DRF's; content negotiation and
    versioning are skipped, since all bodies are JSON.
    """

    renderer_classes = ()
    parser_classes = ()
    throttle_classes = (throttles.CallerThrottle,)
    http_method_names = ["get", "post", "put", "patch", "delete", "head"]
    who: Any = None
    """Who was authenticated, once somebody was."""
    verb: str | None = None
    """What the call did, where that is not what its method is `documented` as."""
    default_response_headers: ClassVar[dict[str, str]] = {}
    """None: `finalize_response` says what is allowed, where that is asked for."""
    reports: bool = False
    """Whether the call only reports, as a heartbeat does: PULLWAKE_AUDIT_REPORTS."""
    let_in_at: float | None = None
    """When the call was let in, by the monotonic clock; None again once it may not be repeated."""
    commits_before: int = 0
    """What its thread had committed by then."""

    def __init_subclass__(cls) -> None:
        """Answer HEAD as GET; where Django sees to that, each view refers to itself."""
        super().__init_subclass__()
        if hasattr(cls, "get") and not hasattr(cls, "head"):
            setattr(cls, "head", cls.get)  # noqa: B010  # no attribute of every view's

    def initialize_request(self, request: HttpRequest, *args: Any, **kwargs: Any) -> Request:
        """A request that is freed with its last reference.

        With DRF's parsers, which are not used here, the request would refer to itself; for ten
        thousand held requests the garbage collector would then stop everything for a second.
        """
        initialized = Request(request, (), self.get_authenticators(), _NEGOTIATOR)
        initialized.parser_context.clear()
        # What is asked for all the time; DRF would find it anew each time, in the request behind.
        vars(initialized).update(META=request.META, method=request.method, path=request.path)
        return initialized

    def dispatch(self, request: HttpRequest, *args: Any, **kwargs: Any) -> Any:
        """Answer; what it causes goes on with its trace."""
        with tracing.serving(request):
            return super().dispatch(request, *args, **kwargs)

    def initial(self, request: Request, *args: Any, **kwargs: Any) -> None:
        """Check the origin, authenticate, then ask the permission and throttle classes."""
        log_facts.note(**_subject(kwargs))
        origins.require_own(request)
        self.perform_authentication(request)
        self.who = request.user
        self.check_permissions(request)
        self.check_throttles(request)
        if request.method == "DELETE":
            raw_body(request)  # nobody reads it, but it has to be JSON like any other
        self.let_in_at, self.commits_before = time.monotonic(), commits.count

    def handle_exception(self, exc: Exception) -> Any:
        """Answer with an error, or carry the call out once more.

        It is repeated where its transaction was lost before the commit, so that the database has
        undone all of it: this process may have stood still for a moment while the garbage collector
        ran among thousands of held requests. It is not repeated after another commit of the same
        call, nor long after it began, when its caller may have left and asked somewhere else. What
        a call writes outside of its transaction may be written twice.
        """
        began, self.let_in_at = self.let_in_at, None
        within_s = settings.PULLWAKE_IDLE_TRANSACTION_TIMEOUT_MS / 1000
        is_new = began is not None and time.monotonic() < began + within_s
        if is_new and was_undone(exc) and commits.count == self.commits_before:
            handler = getattr(self, str(self.request.method).lower())
            try:
                return handler(self.request, *self.args, **self.kwargs)
            except Exception as again:  # noqa: BLE001  answered like the first
                exc = again
        return super().handle_exception(exc)

    def permission_denied(
        self, request: Request, message: str | None = None, code: str | None = None
    ) -> NoReturn:
        """Raise Forbidden with the permission's message, or Unauthenticated without a caller."""
        if request.user is None:
            raise Unauthenticated
        raise Forbidden(message)

    def throttled(self, request: Request, wait: float | None) -> NoReturn:
        """Raise RateLimited."""
        raise throttles.refuse(wait)

    def finalize_response(  # type: ignore[override]  # DRF takes any response, too
        self, request: Request, response: HttpResponseBase, *args: Any, **kwargs: Any
    ) -> HttpResponseBase:
        """Name the allowed methods where the one tried is not, and the length of the body.

        The request no longer needs the database: a slow reader holds no connection.
        """
        hand_back()
        self._note(request, response)
        if response.status_code == 405:
            response.headers["Allow"] = ", ".join(self.allowed_methods)
        if isinstance(response, HttpResponse):
            if response.status_code not in (204, 304):
                response.headers["Content-Length"] = str(len(response.content))
            if not response.content and request.method != "HEAD":
                del response.headers["Content-Type"]
        return response

    def _note(self, request: Request, response: HttpResponseBase) -> None:
        """Say who called; and leave a line of what changed things, or was refused to its caller."""
        status, method = response.status_code, str(request.method)
        refused = status in (401, 403)
        changed = status < 400 and method not in SAFE_METHODS
        if self.who is None and not (refused or changed):
            return
        principal = caller_name(request, self.who, status)
        if not (refused or changed):
            log_facts.note(principal=principal)
            return
        verb = self.verb or str(getattr(getattr(self, method.lower(), None), "verb", method))
        log_facts.note(principal=principal, verb=verb)
        if refused or not self.reports or settings.PULLWAKE_AUDIT_REPORTS:
            audit.note(request, principal=principal, verb=verb, answer=status, refused=refused)

    @contextmanager
    def recorded(self, row: Model, what: str, *, flag: int = DELETION) -> Iterator[None]:
        """Run the block in one transaction with an entry for the row in the audit log."""
        by = caller_name(self.request, self.who, 200)
        with transaction.atomic():
            # Before, since a deleted row has lost its key afterwards.
            audit.record_call(row, f"{what} by {by}", flag=flag)
            yield

    @property
    def caller(self) -> Principal:
        """The authenticated principal."""
        return cast(Principal, self.who)


def _subject(names: dict[str, str]) -> dict[str, str]:
    """The runner, the claim or the entity that an address names."""
    if "runner_id" in names:
        return {"runner": names["runner_id"]}
    if "consumer_id" in names:
        return {"consumer_id": names["consumer_id"]}
    if "type_name" in names:
        return {"entity": f"/{names['type_name']}/{names['name']}"}
    return {}


class RunnerResource(ApiView):
    """A view of one runner, for its owner."""

    authentication_classes = (RunnerAuthentication,)
    permission_classes = (IsAuthenticated, OwnsRunner)
    find = staticmethod(registry.find)
    """`registry.find_seen` for a view that needs to know when the runner was seen."""

    def runner(self, runner_id: str) -> Runner:
        """The caller's runner. Raises NotFound, Forbidden."""
        runner = self.find(runner_id)
        self.check_object_permissions(self.request, runner)
        return runner


class EntityResource(ApiView):
    """A view of one entity, for whoever may read it, or may do what its creator may."""

    permission_classes = (IsAuthenticated, MayReadOrAct)
    find = staticmethod(entities.find)
    """`entities.find_alone` for a view that locks the entity's dispatch state."""

    def entity(self, type_name: str, name: str) -> Entity:
        """The entity, as `find` has it. Raises NotFound, Forbidden."""
        entity = self.find(type_name, name)
        self.check_object_permissions(self.request, entity)
        return entity
