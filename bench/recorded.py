"""Pullwake, writing down every statement that a request sends to the database.

One JSON array a request goes to the file BENCH_RECORD, BEGIN and COMMIT among them, with the
parameters in place: what `bench.replay` counts, and has pgbench do again. Serve it with one worker,
and call it on one connection.
"""

import json
import os
from collections import defaultdict
from collections.abc import Callable
from typing import Any

from django.db import connections
from django.db.backends.postgresql.base import DatabaseWrapper

from config.wsgi import application as product

# By Django's connection, which each thread has its own of: the housekeeper's are not the request's.
_statements: dict[int, list[str]] = defaultdict(list)


def _execute(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
    connection = context["connection"]
    sent = params if many else [params]
    _statements[id(connection)] += [connection.ops.compose_sql(sql, each) for each in sent]
    return execute(sql, params, many, context)


def _noting(method: str, statement: Callable[..., str | None]) -> None:
    plain = getattr(DatabaseWrapper, method)

    def noted(self: DatabaseWrapper, *args: Any) -> Any:
        if text := statement(*args):
            _statements[id(self)].append(text)
        return plain(self, *args)

    setattr(DatabaseWrapper, method, noted)


_noting("_set_autocommit", lambda autocommit: None if autocommit else "BEGIN")
_noting("_commit", lambda: "COMMIT")
_noting("_rollback", lambda: "ROLLBACK")


def application(environ: dict[str, Any], start_response: Any) -> Any:
    """Serve one request, and write down the statements that it sent."""
    connection = connections["default"]
    connection.execute_wrappers[:] = [_execute]
    _statements[id(connection)].clear()
    response = product(environ, start_response)
    with open(os.environ["BENCH_RECORD"], "a") as record:
        record.write(json.dumps(_statements[id(connection)]) + "\n")
    return response
