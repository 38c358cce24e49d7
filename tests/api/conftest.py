"""What the tests that walk over every endpoint begin with."""

from collections.abc import Iterator

import pytest
from pytest_django import DjangoDbBlocker

from tests.api.endpoints import Scene
from tests.standing import standing


@pytest.fixture(scope="module")
def standing_scene(django_db_setup: None, django_db_blocker: DjangoDbBlocker) -> Iterator[Scene]:
    """The scene of a module's tests."""
    with standing(django_db_blocker, Scene.set) as scene:
        yield scene


@pytest.fixture
def scene(standing_scene: Scene, db: None) -> Scene:
    """Every endpoint answers with success here; what the test does to it is undone."""
    return standing_scene
