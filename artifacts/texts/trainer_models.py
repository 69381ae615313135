"""The models that trainers train, and what a trainer takes of media for each.

The rates are those to which a trainer brings videos: musubi-tuner
`src/musubi_tuner/dataset/image_video_dataset.py`, diffusion-pipe `models/*.py` (`framerate`). The
numbers of frames are those of the videos that the model's published code makes by default.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple

from artifacts.errors import UsageError


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainerModel:
    """A model, and what its trainer takes of media for it."""

    trainer: str
    name: str
    side: int = 1024
    """Pictures are trained at about as many pixels as a square of this side has."""
    fps: float = 0.0
    """Frames per second to which the trainer brings videos; 0: it keeps their rate."""
    frames: int = 0
    """Most frames of a video; 0: it takes none."""
    step: int = 4
    """The trainer takes one frame more than a multiple of this."""
    least: int = 0
    """Fewest frames, without which the trainer ends with an error."""
    exact: bool = False
    """Whether each clip was cut so that the trainer takes exactly `frames` frames of it."""

    @property
    def label(self) -> str:
        """Return it as `--trainer` names it."""
        return f"{self.trainer}:{self.name}"

    def nearest(self, frames: int) -> tuple[int, ...]:
        """Return the numbers of frames of a video that it takes whole nearest to this one: itself,
        or those below and above it."""
        fewest = max(self.least, self.step + 1)
        below = max(fewest, (frames - 1) // self.step * self.step + 1)
        return (below,) if frames <= below else (below, below + self.step)


class _Videos(NamedTuple):
    fps: float
    frames: int
    step: int = 4
    least: int = 0


def _of(
    trainer: str, pictures: str, videos: Mapping[str, _Videos] = MappingProxyType({})
) -> dict[str, TrainerModel]:
    """Return a trainer's models by name: those of pictures, and those of videos."""
    plain = [TrainerModel(trainer=trainer, name=name) for name in pictures.split()]
    moving = [
        TrainerModel(trainer=trainer, name=name, side=512, **of._asdict())
        for name, of in videos.items()
    ]
    return {model.name: model for model in (*plain, *moving)}


WAN, HUNYUAN, HUNYUAN_15 = _Videos(16.0, 81), _Videos(24.0, 129), _Videos(24.0, 121)
MODELS: dict[str, dict[str, TrainerModel]] = {
    "kohya": {
        "sd1.5": TrainerModel(trainer="kohya", name="sd1.5", side=512),
        **_of("kohya", "sdxl sd3 flux-dev flux-schnell lumina2 anima hunyuan-image"),
    },
    "musubi": _of(
        "musubi",
        "flux-kontext flux2-dev flux2-klein qwen-image qwen-image-edit z-image krea2 hidream-o1 "
        "ideogram4",
        {
            "wan": WAN,
            "hunyuan-video": HUNYUAN,
            "hunyuan-video-1.5": HUNYUAN_15,
            "framepack": _Videos(30.0, 145, step=36, least=37),
            "kandinsky5-video": _Videos(24.0, 121),
        },
    ),
    "diffusion-pipe": _of(
        "diffusion-pipe",
        "sdxl flux sd3 chroma lumina2 hidream omnigen2 qwen-image hunyuan-image z-image krea2 "
        "flux2",
        {
            "wan": WAN,
            "hunyuan-video": HUNYUAN,
            "hunyuan-video-1.5": HUNYUAN_15,
            "ltx-video": _Videos(25.0, 121, step=8),
            "ltx2": _Videos(24.0, 121, step=8),
            "cosmos-predict2": _Videos(16.0, 93),
        },
    ),
    "ltx": _of("ltx", "", dict.fromkeys(("ltx-video", "ltx2"), _Videos(0.0, 121, step=8))),
    "ai-toolkit": _of(
        "ai-toolkit",
        "sd1.5 sdxl flux chroma hidream krea2 flux2 z-image qwen-image anima omnigen2 wan ltx2",
    ),
    "onetrainer": _of(
        "onetrainer",
        "sd1.5 sdxl sd3 flux flux2 hidream qwen-image z-image krea2 pixart sana ideogram4 "
        "hunyuan-video",
    ),
    "simpletuner": _of(
        "simpletuner",
        "sd1.5 sdxl sd3 flux-dev flux-schnell hidream auraflow pixart lumina2 qwen-image z-image "
        "kandinsky5 wan ltx-video ltx2 hunyuan-video-1.5",
    ),
    "videox-fun": _of("videox-fun", "wan cogvideox hunyuan-video qwen-image ltx2"),
}
"""Trainer → name → model. The last four take a text file for each medium."""


ANY = {
    name: TrainerModel(trainer=name, name="any model", frames=1, step=step)
    for name, step in {"musubi": 4, "diffusion-pipe": 4, "ltx": 8}.items()
}
"""Trainer → what each of its models of videos takes."""


def parse_trainers(given: list[str]) -> tuple[str, ...]:
    """Return the names of several options `--trainer`, each with one or more."""
    return tuple(name.strip() for text in given for name in text.split(",") if name.strip())


def form_of(trainer: str) -> str:
    """Return the format that is written for a trainer: its own, or `txt`."""
    return trainer if trainer in ("kohya", "musubi", "diffusion-pipe", "ltx") else "txt"


def models_named(names: Sequence[str]) -> dict[str, TrainerModel]:
    """Return the models that `--trainer` names, by trainer. Raises UsageError."""
    models: dict[str, TrainerModel] = {}
    for text in names:
        trainer, _, name = text.partition(":")
        if trainer not in MODELS:
            raise UsageError(
                f"unknown trainer in --trainer {text}",
                hint=f"Write TRAINER:MODEL. Trainers: {', '.join(MODELS)}",
            )
        if name not in MODELS[trainer]:
            what = f"unknown model {name!r}" if name else "the model is missing"
            raise UsageError(
                f"--trainer {text}: {what}",
                hint=f"Models of {trainer}: {', '.join(MODELS[trainer])}",
            )
        if models.get(trainer, MODELS[trainer][name]).name != name:
            raise UsageError(
                f"--trainer names two models of {trainer}: {models[trainer].name} and {name}",
                hint="A data set is set for one: give each its own --out",
            )
        models[trainer] = MODELS[trainer][name]
    return models
