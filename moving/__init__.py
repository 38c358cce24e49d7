"""Moving in: what another server of this protocol has is read from its database and taken over.

In here: what its rows mean to us, and the report. Not in here: how a row of ours is written, which
the rooms below do; they hold what comes from elsewhere to the same rules as a request.
"""
