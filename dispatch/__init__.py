"""Entities, their types and streams, and the wakes that tell runners about their work.

Belongs here: when an entity is woken, and what its stream holds. Does not: who holds it; of the
active claim this room knows only the epoch.
"""
