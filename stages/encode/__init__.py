"""Frames to features, with the vision half alone."""

RECIPE = 3
"""Raised when this stage's own output changes for the same inputs; part of every key below it."""
