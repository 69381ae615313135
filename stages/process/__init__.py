"""Runs each stage in a process of its own: only process exit reliably frees a GPU."""
