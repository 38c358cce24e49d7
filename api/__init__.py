"""The REST API that runners and apps speak: one file a resource.

Belongs here: parsing a request, checking rights, calling one verb, answering; and turning errors
into HTTP. Does not: a rule about runners, entities or claims, nor a query that decides anything.
"""
