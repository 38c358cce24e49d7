"""Entities, their types and streams, and the wakes that tell runners of their work.

Belongs here: when an entity is woken, and what its stream holds. Does not: who holds it; of the
active claim it knows the epoch alone.
"""
