"""Keeps vectors in a folder that is its own index, and searches it."""
