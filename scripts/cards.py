"""Writes `docs/cards.md`, and the table from which `penstock plan` names the largest models:
`python -m scripts.cards`. A test says when they are old."""

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

from flows.planning.plan_view import TABLE
from scripts.card_models import card_models
from scripts.cards_page import page
from scripts.cards_plan import PlannedModel, largest, plan_model

PAGE = Path(__file__).parents[1] / "docs" / "cards.md"


def plan_all() -> list[PlannedModel]:
    """Plan all models, which takes minutes."""
    with tempfile.TemporaryDirectory() as folder:
        return [plan_model(model, Path(folder)) for model in card_models()]


def table(planned: Sequence[PlannedModel]) -> str:
    """Return the text of the table of the largest models."""
    return json.dumps(largest(planned), indent=1) + "\n"


if __name__ == "__main__":
    planned = plan_all()
    PAGE.write_text(page(planned), encoding="utf-8")
    TABLE.write_text(table(planned), encoding="utf-8")
