"""After a database was restored from a backup: no epoch that was handed out is given again."""

from dataclasses import dataclass

from django.db import transaction

from claims import endings
from core.database import take_as_long_as_needed
from dispatch import wakes
from dispatch.models import DispatchState
from runners import changes


@dataclass(frozen=True, slots=True)
class Recovery:
    """How many claims were fenced, and how many entities woken."""

    fenced: int
    woken: int


def recover() -> Recovery:
    """Start every entity's generations past those of the lost rows, in one transaction.

    Claims that were active in the backup are fenced: their holders, should they still be working,
    may have ended them and hold others. No server may run meanwhile. It may be repeated.
    """
    with transaction.atomic():
        take_as_long_as_needed()
        wakes.start_over()
        changes.start_over()
        held = wakes.lock(DispatchState.objects.exclude(active_epoch=None))
        for state in held:
            endings.fence_holder(state)
            wakes.save(state)
        return Recovery(fenced=len(held), woken=wakes.wake_all_due())
