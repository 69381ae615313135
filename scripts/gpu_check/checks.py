"""Every check, in the order in which they are made, with the seconds that it may take and what it
needs of a card."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

from scripts.gpu_check import card, driver
from scripts.gpu_check.rows import Row
from scripts.gpu_check.setting import DEMO, Setting

Rows = Callable[[Setting], Iterator[Row]]


class Check(NamedTuple):
    """One of them."""

    name: str
    rows: Rows
    seconds: float = 120.0
    """After so many it is given up."""
    needs: tuple[str, ...] = ()
    """Of `card.LACKS`."""


LOOK = Check("card", card.look)
CHECKS = (
    Check("context", driver.context),
    Check("outside the allocator", driver.outside, needs=("device", "allocator")),
    Check("uuid", driver.uuid),
    Check("SDPA", driver.sdpa, needs=("device", "allocator")),
)
OF_A_MODEL: tuple[Check, ...] = ()
"""Made of another model than the demo's only."""


def wanted(setting: Setting, only: tuple[str, ...]) -> tuple[Check, ...]:
    """The checks whose names hold one of these words; all, of no words."""
    checks = CHECKS + (OF_A_MODEL if setting.model != DEMO else ())
    return tuple(
        check
        for check in checks
        if not only or any(word.lower() in check.name.lower() for word in only)
    )


def named(name: str) -> Check:
    """Raises StopIteration for a name that there is not."""
    return next(check for check in (LOOK, *CHECKS, *OF_A_MODEL) if check.name == name)
