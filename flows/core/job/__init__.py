"""Builds a job from the options and the environment: sources, model, cache keys, budget."""
