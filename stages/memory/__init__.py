"""Measures and limits the memory and time of computations."""
