"""Whether this server lives, and whether it can serve."""

from threading import Event

from django.db import connection
from django.db.migrations.executor import MigrationExecutor
from django.http import HttpRequest, HttpResponse

from api.openapi import documented
from api.views import ApiView
from config.serving import life
from core.bodies import Body, answer
from core.errors import ServiceUnavailable

draining = Event()
"""Set once this process is to stop: it serves still, and proxies are to go elsewhere."""


class Ok(Body, frozen=True, kw_only=True):
    """All is well."""

    status: str
    """Always `ok`."""


class LiveView(ApiView):
    """/livez"""

    authentication_classes = ()
    permission_classes = ()

    @documented("Tell that the process can go on", answers={200: Ok}, operation="getLiveness")
    def get(self, request: HttpRequest) -> HttpResponse:
        """At once, whether the database is there or not."""
        trouble = life.trouble()
        if trouble is not None:
            raise ServiceUnavailable(trouble)
        return answer(Ok(status="ok"))


class ElectricHealthView(LiveView):
    """/_electric/health, where existing runners look."""

    operation = "getHealth"


class ReadyView(ApiView):
    """/readyz"""

    authentication_classes = ()
    permission_classes = ()

    @documented("Tell that requests can be served", answers={200: Ok}, operation="getReadiness")
    def get(self, request: HttpRequest) -> HttpResponse:
        """It is not stopping; the database takes writes, and no migration is missing."""
        if draining.is_set():
            raise ServiceUnavailable("This server is stopping.")
        if connection.vendor == "postgresql":
            with connection.cursor() as cursor:
                cursor.execute("SHOW transaction_read_only")
                if cursor.fetchone() == ("on",):
                    raise ServiceUnavailable("The database is read-only: a standby, maybe.")
        executor = MigrationExecutor(connection)
        if executor.migration_plan(executor.loader.graph.leaf_nodes()):
            raise ServiceUnavailable("Migrations are missing: run manage.py migrate.")
        if connection.vendor == "sqlite":
            connection.connection.require_writable()
        return answer(Ok(status="ok"))
