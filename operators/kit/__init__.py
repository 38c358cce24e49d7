"""What the pages share: lists without COUNT, verbs with a confirmation, forms, and markup.

No form here edits a row. A list is read page by page from a row on, a page tells a row's story,
and whatever changes anything is a `verbs.Verb`.
"""
