"""The operators' admin: the kit of its lists and verbs, then one page a file.

Belongs here: what an operator sees and may do. Does not: how it is done; a page calls the same
verbs as the API.
"""
