"""Builders of models, media, servers and jobs for tests and benchmarks."""
