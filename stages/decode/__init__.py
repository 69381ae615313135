"""Features and a prompt to captions, with the language half alone."""

RECIPE = 4
"""Raised when this stage's own output changes for the same inputs; part of every key below it."""
