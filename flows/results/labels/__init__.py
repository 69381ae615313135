"""Gives labels to pictures whose vectors are there, and writes them."""
