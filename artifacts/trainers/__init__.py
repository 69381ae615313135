"""The data set formats of trainers, by their `--format` names."""

from artifacts.trainers.diffusion_pipe import DIFFUSION_PIPE
from artifacts.trainers.form import TrainerEntry, TrainerForm
from artifacts.trainers.hf import HF
from artifacts.trainers.kohya import KOHYA
from artifacts.trainers.ltx import LTX
from artifacts.trainers.musubi import MUSUBI

__all__ = ["TRAINERS", "TrainerEntry", "TrainerForm"]

TRAINERS: dict[str, TrainerForm] = {
    "kohya": KOHYA,
    "musubi": MUSUBI,
    "diffusion-pipe": DIFFUSION_PIPE,
    "ltx": LTX,
    "hf": HF,
}
