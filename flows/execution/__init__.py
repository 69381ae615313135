"""Runs a job from its first stage to its last, with waves, fallback rungs and an orderly end."""
