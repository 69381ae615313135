"""Turns pickled weights into safetensors, in a process of its own."""
