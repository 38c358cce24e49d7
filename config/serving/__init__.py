"""How Pullwake is served: gunicorn's settings and worker, middleware, probes and metrics.

Belongs here: what a process of the server needs. Does not: what any request means.
"""
