"""The namespaces of what is made with tiny checkpoints of many families, for a few commands.
tests/data/keys_before.json holds those of an earlier version; `python -m tests.support.keys_before`
writes it anew, which is right only where finished work is meant to be done again."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from artifacts.keys import digest_of
from flows.checkpoint.models import Model
from flows.checkpoint.precision import resolve_settings
from flows.ledger.namespaces import variants_of
from flows.options.commands import CaptionConfig
from flows.pipelines import CAPTION
from penstock_demo import CHECKPOINT
from stages.models import ModelProfile, describe
from stages.models.hub.checkpoint import Checkpoint
from tests.support.checkpoints import MODELS, whole_checkpoint
from tests.support.families import BUILDERS, checkpoint

RECORDED = Path(__file__).parent.parent / "data" / "keys_before.json"
CHECKPOINTS: dict[str, Callable[[], Path]] = {
    "demo": lambda: CHECKPOINT,
    **{name: lambda name=name: checkpoint(name) for name in BUILDERS},  # type: ignore[misc]
    **{name: lambda name=name: whole_checkpoint(name) for name in MODELS},  # type: ignore[misc]
}
"""Family → makes the folder of its checkpoint."""
COMMANDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "system": {"system": "Be brief."},
    "start": {"start_with": "A ", "seed": 3, "temperature": 0.5},
    "frames": {"fps": 2.0, "max_frames": 4, "max_new_tokens": 40},
}
"""Name → options of the command."""


def config_of(**options: Any) -> CaptionConfig:
    return CaptionConfig(
        sources=("clip.mp4",), model="model", precision="fp32", out="out", store="s", **options
    )


def model_of(profile: ModelProfile, config: CaptionConfig) -> Model:
    """A model of this profile, of which all files have digests that never change."""
    folder = Path(profile.folder)
    return Model(
        name="model",
        checkpoint=Checkpoint(name="model", folder=folder),
        profile=profile,
        digests={part: f"digest of {part}" for part in profile.parts},
        settings=resolve_settings(config, profile, "cpu"),
    )


def namespaces(profile: ModelProfile, command: str) -> dict[str, str]:
    """Kind of records → the digest of its namespaces in all variants."""
    config = config_of(**COMMANDS[command])
    model = model_of(profile, config)
    variants = variants_of(config, model, model.sampling(config), CAPTION, set())
    return {stage.writes: digest_of([v[stage.writes] for v in variants]) for stage in CAPTION}


def keys_of(family: str) -> dict[str, dict[str, str]]:
    profile = describe(CHECKPOINTS[family]())
    return {command: namespaces(profile, command) for command in COMMANDS}


def main() -> None:
    found = {family: keys_of(family) for family in CHECKPOINTS}
    RECORDED.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
