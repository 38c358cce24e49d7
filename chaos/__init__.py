"""Chaos: servers, runners, a database, the network between them, and all that may go wrong.

The storm belongs here, and the judge of what it leaves. docs/reliability.md says what must hold.
"""
