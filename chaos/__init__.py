"""Chaos: servers, runners, a database and the network between them, and what may befall them.

Belongs here: the storm, and the judge of what it left. docs/reliability.md says what must hold.
"""
