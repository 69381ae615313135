"""Options that select frames and images of media files."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated

from artifacts.errors import UsageError, excluding
from artifacts.options import Option, OptionGroup
from artifacts.texts.trainer_models import ANY, models_named
from artifacts.tiles import AUTO, OFF, check_tiles
from flows.core.options.formats import SAMPLING, VECTORS

MIN_CHUNK_SECONDS = 0.1
"""Each chunk takes memory while a run is planned: shorter ones would fill it."""
MOST_FPS = 1000
"""More would repeat frames, and each time takes memory while a run is planned."""
MOST_CLIP = 10_000
"""Largest number of frames of a clip; models take some hundreds."""
DROP, OVERLAP = "drop", "overlap"
"""What becomes of the rest of a file or shot that is shorter than a clip."""
DEINTERLACE_OPTION = Option(
    "auto, or off: keep the combs of interlaced frames [%(default)s]",
    SAMPLING,
    "HOW",
    values=(AUTO, OFF),
)


@dataclass(frozen=True, kw_only=True)
class VideoSamplingOptions(OptionGroup):
    """How videos are cut into chunks, and which frames of a chunk the model gets."""

    chunk: Annotated[
        float | None,
        Option(
            "seconds per chunk [30, or the model's maximum if less]",
            SAMPLING,
            "SECONDS",
            least=MIN_CHUNK_SECONDS,
            excludes="pieces",
        ),
    ] = None
    """Seconds per chunk; with `shots` or `chapters`, of the longest one. None: 30, or the maximum
    stated by the checkpoint's processor if that is less."""
    shots: Annotated[
        bool, Option("one chunk per shot, split at 30 s", SAMPLING, excludes="pieces")
    ] = False
    """Split at shot boundaries instead of at equal lengths."""
    chapters: Annotated[
        bool, Option("one chunk per chapter of the file, split at --chunk or 30 s", SAMPLING)
    ] = False
    """Split where the chapters that the file states begin and end; a file without is split at equal
    lengths."""
    whole: Annotated[bool, Option("one caption per file, of any length", SAMPLING)] = False
    """Make one chunk of each file. Its frames are spread evenly over the file."""
    clip_frames: Annotated[
        int | None,
        Option(
            "one chunk per N frames that a trainer takes", SAMPLING, "N", above=0, most=MOST_CLIP
        ),
    ] = None
    """Frames that a trainer takes of a clip: a chunk is as long as they are, at `clip_fps`. With
    `shots`, no chunk crosses a cut. Excludes `chunk` and `whole`."""
    clip_fps: Annotated[
        float | None,
        Option("their rate [that of --trainer]", SAMPLING, "F", above=0, most=MOST_FPS),
    ] = None
    """Frames per second at which the trainer takes them; None: those of the model in `trainer`."""
    clip_rest: Annotated[
        str,
        Option(
            "what is left: drop, or overlap: one more clip of its last N frames [%(default)s]",
            SAMPLING,
            "HOW",
            values=(DROP, OVERLAP),
        ),
    ] = DROP
    """What becomes of the rest of a file or shot that is shorter than a clip: `drop` leaves it out,
    `overlap` makes one more clip of the last frames."""
    fps: Annotated[
        float | None,
        Option("frames per second [the model's, else 1]", SAMPLING, "F", above=0, most=MOST_FPS),
    ] = None
    """Frames per second; None: the value of the checkpoint's processor."""
    frames: Annotated[
        int | None, Option("frames per chunk, spread evenly", SAMPLING, "N", above=0)
    ] = None
    """Frames per chunk, spread evenly; excludes `fps`."""
    max_frames: Annotated[
        int | None,
        Option("maximum frames per chunk [the model's, else 32]", SAMPLING, "N", above=0),
    ] = None
    """Maximum frames per chunk; None: the value of the checkpoint's processor."""
    max_pixels: Annotated[
        int | None, Option("maximum pixels per frame [the model's]", SAMPLING, "N", above=0)
    ] = None
    """Maximum pixels of an image or a frame, before it is split into patches; None: the value of
    the checkpoint's processor."""
    max_video_pixels: Annotated[
        int | None, Option("maximum pixels per chunk [the model's]", SAMPLING, "N", above=0)
    ] = None
    """Maximum pixels of all frames of a chunk together; None: the value of the checkpoint's
    processor."""
    deinterlace: Annotated[str, DEINTERLACE_OPTION] = AUTO
    """`auto` removes the combs of interlaced frames; `off` keeps them."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.fps is not None and self.frames is not None:
            raise excluding("--fps", "--frames")
        split = "--shots" if self.shots else "--chapters" if self.chapters else "--chunk"
        if self.whole and (split != "--chunk" or self.chunk is not None):
            raise excluding("--whole", split)
        if self.shots and self.chapters:
            raise excluding("--shots", "--chapters")
        if self.clip_frames and (self.whole or self.chunk is not None):
            raise excluding("--clip-frames", "--whole" if self.whole else "--chunk")
        if not self.clip_frames and (self.clip_fps or self.clip_rest != DROP):
            alone = "--clip-fps" if self.clip_fps else "--clip-rest"
            raise UsageError(
                f"{alone} is about clips of --clip-frames", hint="Give both, or neither"
            )

    def rate_of_clips(self, trainers: Sequence[str], formats: Sequence[str] = ()) -> float:
        """Return the frames per second at which the frames of clips are taken: as requested, or
        those of the models of `trainers`. The number of frames is checked for these, and for any
        model of the trainers of `formats`. Raises UsageError."""
        count, named = self.clip_frames or 0, models_named(trainers)
        models = [model for model in named.values() if model.frames]
        models += [model for form, model in ANY.items() if form in formats and form not in named]
        for model in models:
            if count not in (nearest := model.nearest(count)):
                raise UsageError(
                    f"--clip-frames {count}: {model.label} takes one frame more than a multiple of "
                    f"{model.step}",
                    hint=f"Give {' or '.join(map(str, nearest))}",
                )
        by_trainer = {model.fps: model.label for model in models if model.fps}
        rates = {**({self.clip_fps: "--clip-fps"} if self.clip_fps else {}), **by_trainer}
        if not rates:
            raise UsageError(
                f"--clip-frames {count}: at which rate the trainer takes frames is not known",
                hint="Give --clip-fps, or a --trainer that has a rate, such as musubi:wan",
            )
        if len(rates) > 1:
            of_each = " and ".join(f"{label} {rate:g}" for rate, label in rates.items())
            is_own = len(by_trainer) == 1
            raise UsageError(
                f"--clip-frames {count}: clips have one rate, and there are several: {of_each}",
                hint="Leave --clip-fps out" if is_own else "Give each trainer its own --out",
            )
        (rate,) = rates
        if count / rate < MIN_CHUNK_SECONDS:
            raise UsageError(
                f"--clip-frames {count} are {count / rate:g} s at {rate:g} per second",
                hint=f"Give as many as are {MIN_CHUNK_SECONDS:g} s or more",
            )
        return rate

    @property
    def has_own_frames(self) -> bool:
        """Return whether clips of slower videos have that many of their own frames."""
        return False


ON = "on"


@dataclass(frozen=True, kw_only=True)
class SoundOptions(OptionGroup):
    """Whether the model gets the sound of videos."""

    sound: Annotated[
        str,
        Option(
            "caption what is heard, too: auto (if the model hears), on, off [%(default)s]",
            SAMPLING,
            "HOW",
            values=(AUTO, ON, OFF),
        ),
    ] = AUTO
    """`auto` uses the sound of videos if the model hears; `on` refuses a model that does not; `off`
    leaves it out."""
    sound_track: Annotated[
        int | None, Option("sound track to use, from 1 [the default one]", SAMPLING, "N", above=0)
    ] = None
    """Number of the sound track, from 1; None: that which the file marks as default, else the
    first."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sound == OFF and self.sound_track is not None:
            raise excluding("--sound off", "--sound-track")


@dataclass(frozen=True, kw_only=True)
class VectorSamplingOptions(OptionGroup):
    """The images of a medium that are embedded."""

    fps: Annotated[
        float | None,
        Option("frames per second of a video [1]", VECTORS, "F", above=0, most=MOST_FPS),
    ] = None
    """Frames per second; None: the value of the checkpoint's processor."""
    tiles: Annotated[
        str, Option("off, auto, or tiles along the short side [%(default)s]", VECTORS, "N")
    ] = OFF
    """Square tiles that images are cut into before embedding: `off`, `auto`, or their number along
    the short side."""
    deinterlace: Annotated[str, replace(DEINTERLACE_OPTION, heading=VECTORS)] = AUTO
    """`auto` removes the combs of interlaced frames; `off` keeps them."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_tiles(self.tiles)
