"""What is made once for the tests of a module, in a transaction around all of theirs."""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from typing import TypeVar

from django.apps import apps
from django.db import transaction
from django.db.models import DateTimeField, F, Model
from pytest_django import DjangoDbBlocker

APPS = ("runners", "dispatch", "claims")
Made = TypeVar("Made")


@contextmanager
def undone() -> Iterator[None]:
    """Undo what is written within, so that the next call meets the same rows."""
    with transaction.atomic():
        yield
        transaction.set_rollback(True)


@contextmanager
def standing(blocker: DjangoDbBlocker, make: Callable[[], Made]) -> Iterator[Made]:
    """What is made once for a module's tests: the transaction of each is one within its own.

    The fixture that uses it is one of the module, named ``standing_…``: the tests that use it come
    after those that meet an empty database (tests/conftest.py).
    """
    with ExitStack() as stack:
        with blocker.unblock():
            stack.enter_context(undone())
            made = make()
        yield made
        with blocker.unblock():
            stack.close()


class Ages:
    """Rows whose times are as far away in each test as when they were made, now."""

    def __init__(self) -> None:
        self._made = time.monotonic()
        self._times = {
            model: times
            for app in APPS
            for model in apps.get_app_config(app).get_models()
            if (times := [each.name for each in _times_of(model)]) and model._base_manager.exists()
        }

    def renew(self) -> None:
        """Move all times by what has passed; within the test's transaction."""
        passed = timedelta(seconds=time.monotonic() - self._made)
        for model, times in self._times.items():
            model._base_manager.update(**{name: F(name) + passed for name in times})


def _times_of(model: type[Model]) -> list[DateTimeField]:
    return [each for each in model._meta.concrete_fields if isinstance(each, DateTimeField)]
