"""Tiny random-weight models of every vision-language family that transformers has, saved nowhere:
`FAMILIES` maps a variant's name to what builds its model and inputs."""

from tests.support.tiny_families import coded, grids, mixed, queries, towers
from tests.support.tiny_families.parts import FAMILIES, Builder, Built

__all__ = ["FAMILIES", "Builder", "Built"]
_MODULES = (coded, grids, mixed, queries, towers)
"""Imported because they register."""
