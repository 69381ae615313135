"""Serves labels, vectors, search and captions over HTTP; runs halves by way of live stages."""
