"""Runners: who they are, whether they live and how they are; and the access tokens of all who call.

Belongs here: what is true of a runner by itself. Does not: its wakes (`dispatch`) or claims.
"""
