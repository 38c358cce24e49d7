"""Statements that are compiled once, for the few that runners run all the time.

Belongs here: how a query becomes a prepared statement. Does not: any statement; each stands beside
the verb that runs it.
"""

from core.prepared.batches import ByKey, UpdateByKey
from core.prepared.django_parts import relate
from core.prepared.statements import Insert, Param, SaveChanged, Select, Update, Values

__all__ = [
    "ByKey",
    "Insert",
    "Param",
    "SaveChanged",
    "Select",
    "Update",
    "UpdateByKey",
    "Values",
    "relate",
]
