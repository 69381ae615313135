"""Options of the data sets for trainers."""

from dataclasses import dataclass
from typing import Annotated

from artifacts.options import Option, OptionGroup
from artifacts.texts.trainer_models import models_named, parse_trainers
from flows.core.options.formats import CLIP_SOUNDS, FILES, MEDIA_MODES


@dataclass(frozen=True, kw_only=True)
class DataSetOptions(OptionGroup):
    """The media of data sets for trainers."""

    media: Annotated[
        str | None,
        Option(
            "media of data sets: exact clips and copies, or whole files as they are",
            FILES,
            "MODE",
            values=MEDIA_MODES,
        ),
    ] = None
    """`exact`: where a reader would show other frames than the model saw, the data set has an exact
    copy; `original`: whole files as they are, and no chunks of longer videos. None: as the folder's
    last run, or `exact`."""
    clip_sound: Annotated[
        str | None,
        Option(
            f"sound of clips for trainers that read it: {'|'.join(CLIP_SOUNDS)} [copy]",
            FILES,
            "MODE",
            values=CLIP_SOUNDS,
        ),
    ] = None
    """`copy`: clips keep the sound of their video if a trainer of the folder's data sets reads it;
    `none`: they have none. None: as the folder's last run, or `copy`."""
    trainer: Annotated[
        tuple[str, ...],
        Option(
            "write a trainer's data set, set for a model: kohya:sdxl; repeatable",
            FILES,
            "TRAINER:MODEL",
            parse=parse_trainers,
            repeated=True,
        ),
    ] = ()
    """Trainers whose data sets are written, each set for a model: `kohya:sdxl`, `musubi:wan`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        models_named(self.trainer)
