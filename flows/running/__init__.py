"""Runs a job from its first stage to its last: waves, stages, fallback rungs, and an
orderly end.
"""
