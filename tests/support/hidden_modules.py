"""Modules that processes do not find, as if their packages were not installed."""

from collections.abc import Sequence


def hiding(modules: Sequence[str]) -> str:
    """Return the code of a `sitecustomize` that hides these top-level modules. A finder put first
    could not: libraries ask `find_spec`, which must return nothing and raise nothing."""
    return f"""
from importlib.machinery import PathFinder
found = PathFinder.find_spec
def without(name, path=None, target=None):
    return None if name.partition(".")[0] in {tuple(modules)!r} else found(name, path, target)
PathFinder.find_spec = without
"""
