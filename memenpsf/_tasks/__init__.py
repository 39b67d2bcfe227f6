"""The verbs for the tasks of event loops: what memenpsf.trio and memenpsf.asyncio have in common.

A door gives these classes its own kind of Waiting, its words for errors, and the types that its
functions return.  Nothing here imports an event loop.
"""
