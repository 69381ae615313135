"""Cuts media files into chunks of RGB frames; knows nothing of models."""
