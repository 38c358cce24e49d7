"""Django's checks, which run before every command."""

from django.core import checks
from django.db import connection


def test_they_wait_for_no_database():
    """Without `db`, pytest-django refuses any use of one."""
    vars(connection.features).pop("supports_json_field", None)  # as in a new process
    assert checks.run_checks(databases=["default"]) == []
