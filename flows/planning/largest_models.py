"""Names the largest public models that fit a memory budget. Plans nothing: `python -m
scripts.cards` planned them, and wrote the table that is read here."""

import json
from pathlib import Path
from typing import Any

from flows.console.units import gib
from flows.machine.budget import Budget

TABLE = Path(__file__).parent / "cards" / "largest.json"


def largest_models_line(budget: Budget) -> str:
    """Return one line that names the largest models that fit; empty where none does."""
    kind = "gpu" if budget.device.startswith("cuda") else "cpu"
    table: dict[str, list[dict[str, Any]]] = json.loads(TABLE.read_text(encoding="utf-8"))
    rows = [row for row in table[kind] if row["bytes"] <= budget.bytes]
    if not rows:
        return ""
    largest = max(rows, key=lambda row: row["bytes"])
    found = [f"{largest[key]} {words}" for key, words in NAMES[kind].items() if key in largest]
    if not found:
        return ""
    return f"{', '.join(found)} (planned for {gib(largest['bytes'])}; docs/cards.md)"


NAMES = {
    "gpu": {"unquantized": "unquantized", "quantized": "with --precision auto"},
    "cpu": {"unquantized": "in 32 bit, slow without a GPU"},
}
"""Kind of device → key of the table → the note about the model."""
