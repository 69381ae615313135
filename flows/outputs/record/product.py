"""Finds what a command has made in a folder apart from a run's outputs, such as an adapter: the
folder of its run is elsewhere, and status and report show more of it."""

from collections.abc import Iterator
from pathlib import Path
from pkgutil import resolve_name
from typing import Protocol

from artifacts.disk.json_shapes import Json
from flows.core.commands import declarations


class Product(Protocol):
    """What a command made, as read from its folder."""

    @property
    def run(self) -> Path | None:
        """Return the folder of the run that wrote last; None: it has no run yet."""

    @property
    def reported_run(self) -> Path:
        """Return the folder of the run that a report shows. Raises UsageError without one."""

    def lines(self) -> Iterator[str]:
        """Yield what `penstock status` prints above the run."""

    def to_json(self) -> dict[str, Json]:
        """Return what `penstock status --json` prints besides the run."""

    def about(self) -> Iterator[tuple[str, str]]:
        """Yield rows of the table at the head of a report."""

    def sections(self) -> dict[str, Json]:
        """Return the values of its sections of a report."""


def product_in(out: Path) -> Product | None:
    """Return the product in a folder; None for any other folder. Raises EnvironmentFault."""
    products = (resolve_name(declared.finds)(out) for declared in declarations() if declared.finds)
    return next((product for product in products if product is not None), None)


def run_of(product: Product | None, out: Path) -> Path | None:
    """Return the folder of the last run into `out`, which holds the product; None: a product
    without a run."""
    return out if product is None else product.run
