"""Serves labels, vectors, search and captions over HTTP. Runs halves in worker processes."""
