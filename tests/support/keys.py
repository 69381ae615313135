"""The namespaces of what a model makes, without its files."""

from pathlib import Path
from typing import Any

from artifacts.digests import digest_of
from flows.core.checkpoint.models import Model
from flows.core.checkpoint.precision import resolve_settings
from flows.core.ledger.namespaces import variants_of
from flows.core.options.commands import CaptionConfig
from flows.core.pipelines import CAPTION
from stages.models import ModelProfile
from stages.models.hub.checkpoint import Checkpoint

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
