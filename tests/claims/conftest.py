"""What the tests of claims begin with."""

import pytest

from tests.support import Api, Claim


@pytest.fixture
def claim(alice: Api) -> Claim:
    """An active claim of /agent/e1, which was sent one message, by alice's runner r1."""
    alice.register()
    alice.make_entity()
    alice.send()
    return alice.claim()
