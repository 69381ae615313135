"""Computing few of many layers that are alike counts what computing all of them does."""

from pathlib import Path
from typing import Any

import pytest

from stages.memory import repeated_layers
from stages.memory.live_bytes import LiveBytes
from stages.models.dry_run import dry_run
from stages.models.footprint import BatchCost
from stages.models.halves.classes import config_and_class, skeleton_of
from stages.models.halves.routes import choose_route
from stages.models.processors.prepare import load_processor
from tests.support.checkpoints import whole_checkpoint
from tests.support.families import checkpoint

LAYERS = 7
COUNTS = ("num_hidden_layers", "depth", "encoder_layers", "decoder_layers")


def deep(config: Any) -> Any:
    """The configuration with more layers, whose kinds take turns as they did."""
    parts = [config, *(getattr(config, name, None) for name in config.sub_configs)]
    for part in filter(None, parts):
        for name in COUNTS:
            if hasattr(part, name):
                setattr(part, name, LAYERS)
        if kinds := getattr(part, "layer_types", None):
            part.layer_types = (list(kinds) * LAYERS)[:LAYERS]
    return config


def batch_costs(folder: Path) -> dict[Any, tuple[BatchCost, ...]]:
    config, cls = config_and_class(folder, trusted=False)
    skeleton = skeleton_of(deep(config), cls)
    route = choose_route(skeleton).route
    found = dry_run(skeleton, load_processor(folder, False), route)
    assert found.why == ""
    return {str(half): of_half for half, of_half in found.batch_costs.items()}


MORE = ("llava", "qwen2_5_vl", "qwen3_vl", "smolvlm", "blip_2")


@pytest.mark.parametrize(
    "family", ["gemma3", "florence2", *(pytest.param(x, marks=pytest.mark.slow) for x in MORE)]
)
def test_what_is_counted_is_the_same(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    known = family in ("llava", "qwen2_5_vl", "qwen3_vl", "smolvlm")
    folder = Path(checkpoint(family) if known else whole_checkpoint(family))
    again, skipped = LiveBytes.again, []

    def counted(live: LiveBytes, *given: Any) -> Any:
        skipped.append(given)
        return again(live, *given)

    monkeypatch.setattr(LiveBytes, "again", counted)
    short = batch_costs(folder)
    assert skipped
    monkeypatch.setattr(repeated_layers, "FEWEST", 1000)
    assert batch_costs(folder) == short
