"""Runs the vision half over stored frames, for every stage that needs it."""

FEED_NOTE = "portions"
"""Note of a fed stage: with how many portions it has begun."""
FRAMES_PER_BATCH = 64
"""A batch has fewer chunks when they hold more frames than this together."""
