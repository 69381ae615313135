"""Runs the vision half over stored frames, for every stage that needs it."""

FRAMES_A_BATCH = 64
"""A batch has fewer chunks when they hold more frames than this together."""
