"""Completes `--sampling checkpoint` from a model card if generation_config.json lacks values."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from artifacts.errors import UsageError
from flows.core.options.commands import CaptionConfig, RunOptions
from stages.decode.generation import CHECKPOINT, SAMPLING_FIELDS
from stages.models.hub.checkpoint import GENERATION, read_config
from stages.models.published import facts_of

C = TypeVar("C", bound=RunOptions)


PRESENCE = "presence_penalty"


def with_card_sampling(config: C, folder: Path) -> tuple[C, list[str]]:
    """Return the configuration with sampling values from the model card of the checkpoint in a
    folder, and notes for the user. Options and generation_config.json take precedence. Raises
    UsageError."""
    if not isinstance(config, CaptionConfig) or config.sampling != CHECKPOINT:
        return config, []
    facts = facts_of(str(read_config(folder).get("model_type", "")))
    stated = read_config(folder, GENERATION)
    if config.presence_penalty is None and isinstance(stated.get(PRESENCE), int | float):
        try:
            config = replace(config, presence_penalty=float(stated[PRESENCE]))  # not in `generate`
        except UsageError as error:
            raise UsageError(
                f"{folder / GENERATION}: presence_penalty is {stated[PRESENCE]}",
                hint="Give --presence-penalty, from -2 to 2",
            ) from error
    added = {
        name: value
        for name, value in _missing(stated, facts.sampling).items()
        if getattr(config, name) is None
    }
    if not added:
        return config, []
    options: Any = added
    named = ", ".join(f"{name} {value:g}" for name, value in added.items())
    note = (
        f"--sampling checkpoint: {GENERATION} lacks {named}, which the model's authors "
        f"state ({facts.source})"
    )
    return replace(config, **options), [note]


def _missing(stated: Mapping[str, Any], card: Mapping[str, float]) -> dict[str, float]:
    """Return the values that a card adds to those of a checkpoint. If a value differs, the card
    describes another checkpoint of the family, such as one without thinking, and adds nothing."""
    set_values = {name: stated[name] for name in SAMPLING_FIELDS if stated.get(name) is not None}
    if any(name in card and card[name] != value for name, value in set_values.items()):
        return {}
    samples = stated.get("do_sample")
    if samples is None:
        samples = card.get("temperature", 0.0) > 0
    names = [*(SAMPLING_FIELDS if samples else ()), PRESENCE]
    added = {n: card[n] for n in names if n in card and stated.get(n) is None}
    if not added.get(PRESENCE):
        added.pop(PRESENCE, None)
    return {n: int(v) if n == "top_k" else float(v) for n, v in added.items()}
