"""Builds a job from the options and from what exists: sources, model, cache keys, budget."""
