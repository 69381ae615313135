"""Tells whether a goal was met, in the words of every table; knows no goal."""


def met(good: bool) -> str:
    """Return it in words."""
    return "met" if good else "NOT met"
