"""Claims: entities leased to runners and fenced by epoch; and what ends or reaps them.

Belongs here: whatever makes, renews or ends a claim, or needs to know about claims. Does not: HTTP.
"""
