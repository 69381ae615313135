"""Options that select media files, frames and images."""

from dataclasses import dataclass, replace
from typing import Annotated

from artifacts.errors import UsageError, excluding
from artifacts.options import Option, OptionGroup
from artifacts.tiles import AUTO, OFF, check_tiles
from flows.core.options.formats import FILES, SAMPLING, VECTORS

MIN_CHUNK_SECONDS = 0.1
"""Each chunk takes memory while a run is planned: shorter ones would fill it."""
MOST_FPS = 1000
"""More would repeat frames, and each time takes memory while a run is planned."""
DEINTERLACE_OPTION = Option(
    "auto, or off: keep the combs of interlaced frames [%(default)s]",
    SAMPLING,
    "HOW",
    values=(AUTO, OFF),
)


@dataclass(frozen=True, kw_only=True)
class SourceOptions(OptionGroup):
    """The media files of a run."""

    sources: Annotated[
        tuple[str, ...],
        Option(
            "files, folders, globs, URLs, or lists (@list.txt)",
            positional=True,
            nargs="*",
            not_empty="Name files or folders; . is this folder",
            path=True,
            or_text=True,
        ),
    ]
    """Files, folders, globs, or lists of them (`.txt`, `.json`, `.csv`, `@list`). A plan for a
    model alone has none."""
    recursive: Annotated[bool, Option("search folders recursively", FILES)] = False
    """Search folders recursively."""
    extensions: Annotated[
        tuple[str, ...], Option("only files with these suffixes", FILES, "mp4,mkv")
    ] = ()
    """Suffixes of the files taken from folders and globs; empty: all known ones."""
    limit: Annotated[int | None, Option("at most N files, spread", FILES, "N", above=0)] = None
    """Maximum number of media files, spread evenly over all that the sources name."""

    def check_sources(self) -> None:
        """Raise UsageError when no source is given."""
        if not self.sources:
            raise UsageError("no source given", hint="Name files or folders, such as VIDEOS/")


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
    """Seconds per chunk; with `shots`, of the longest one. None: 30, or the maximum stated by the
    checkpoint's processor if that is less."""
    shots: Annotated[
        bool,
        Option("one chunk per shot, split at 30 s", SAMPLING, excludes="pieces"),
    ] = False
    """Split at shot boundaries instead of at equal lengths."""
    whole: Annotated[bool, Option("one caption per file, of any length", SAMPLING)] = False
    """Make one chunk of each file. Its frames are spread evenly over the file."""
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
        if self.whole and (self.shots or self.chunk is not None):
            raise excluding("--whole", "--shots" if self.shots else "--chunk")


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
        int | None,
        Option("sound track to use, from 1 [the default one]", SAMPLING, "N", above=0),
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
