"""Families that transformers does not have, computed by code of our own from their published files.
Knows neither halves nor stages.

`registry` is the one place of the program that names them; each has a package beside it.
"""
