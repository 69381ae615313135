"""Converts pickled weights to safetensors in its own process."""
