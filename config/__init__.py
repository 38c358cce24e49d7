"""Where the rooms are put together: settings, addresses, and how it is served.

Belongs here: settings, URLs, the WSGI application. Does not: a rule, a page or an endpoint.
"""
