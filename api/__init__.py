"""The REST API that runners and apps speak: one file a resource.

Belongs here: parsing a request, who may, one verb, the answer; and what makes HTTP of errors.
Does not: a rule about runners, entities or claims, nor a query that decides anything.
"""
