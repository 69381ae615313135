"""Adds the options by which a model is run as published or as stock; runs nothing."""

import argparse
from typing import Any


def add_ways(group: argparse._ActionsContainer) -> None:
    """Add the options by which a model is run as published or as stock."""
    add = group.add_mutually_exclusive_group().add_argument
    keep: dict[str, Any] = {"dest": "as_published", "action": "store_const"}
    add("--as-published", const=True, help="run the model as it was published", **keep)
    add("--as-stock", const=False, help="as transformers runs it [by its release]", **keep)
