"""Rings in shared memory: segments and both ends.  The only callers of the C core."""
