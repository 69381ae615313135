"""The data set formats of trainers, by their `--format` names."""

from artifacts.shards import DATASET
from artifacts.trainers.formats import (
    DIFFUSION_PIPE,
    HF,
    KOHYA,
    LTX,
    MUSUBI,
    TrainerEntry,
    TrainerForm,
)

__all__ = ["TRAINERS", "WITH_CLIPS", "TrainerEntry", "TrainerForm"]

TRAINERS: dict[str, TrainerForm] = {
    "kohya": KOHYA,
    "musubi": MUSUBI,
    "diffusion-pipe": DIFFUSION_PIPE,
    "ltx": LTX,
    "hf": HF,
}
WITH_CLIPS = frozenset(
    {DATASET, *(name for name, form in TRAINERS.items() if "video" in form.folders)}
)
"""Formats of data sets that may hold clips of videos."""
