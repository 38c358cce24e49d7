"""What every room stands on: the domain's errors, names, times, bodies and prepared statements.

Belongs here: what knows no app and decides nothing about runners, entities or claims.
Does not: a model, an address, or anything that only one room uses.
"""
