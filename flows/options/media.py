"""Options that select media files, frames and images."""

from dataclasses import dataclass
from typing import Annotated

from artifacts.errors import UsageError
from artifacts.options import Option, OptionGroup
from artifacts.tiles import OFF, check_tiles
from flows.options.headings import FILES, SAMPLING, TEXT, VECTORS


@dataclass(frozen=True, kw_only=True)
class SourceOptions(OptionGroup):
    """The media files of a run."""

    sources: Annotated[
        tuple[str, ...],
        Option(
            "files, folders, globs, addresses, or lists (@list.txt)", positional=True, nargs="*"
        ),
    ]
    """Files, folders, globs, or lists of them (`.txt`, `.jsonl`, `@list`). A plan of a model alone
    has none."""
    recursive: Annotated[bool, Option("look into the folders of a folder", FILES)] = False
    """Look into the folders of a folder."""
    extensions: Annotated[
        tuple[str, ...], Option("take only these from folders", FILES, "mp4,mkv")
    ] = ()
    """Only files with these suffixes are taken from folders and globs; empty: all known ones."""
    limit: Annotated[int | None, Option("at most so many files", FILES, "N", above=0)] = None
    """At most so many media files."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not all(self.sources):
            raise UsageError("a source is empty", hint="Name files or folders; . is this folder")

    def check_sources(self) -> None:
        """Raise UsageError when no source is given."""
        if not self.sources:
            raise UsageError(
                "no source is given", hint="Name files or folders: penstock caption VIDEOS/"
            )


@dataclass(frozen=True, kw_only=True)
class VideoSamplingOptions(OptionGroup):
    """How videos are cut into chunks, and which frames of a chunk the model gets."""

    chunk: Annotated[
        float | None,
        Option(
            "seconds a chunk [30, or less where a model sees less]",
            SAMPLING,
            "SECONDS",
            above=0,
            excludes="pieces",
        ),
    ] = None
    """Seconds a chunk; with `shots`, of the longest one. None: 30, or what the
    checkpoint's processor says that it sees, if that is less."""
    shots: Annotated[
        bool,
        Option("a chunk a shot, those over 30 seconds in pieces", SAMPLING, excludes="pieces"),
    ] = False
    """Cut where the picture changes at once instead of at equal lengths."""
    whole: Annotated[bool, Option("one caption a file, however long", SAMPLING)] = False
    """Make one chunk of each file, however long; its frames are spread evenly over it."""
    fps: Annotated[
        float | None,
        Option("frames a second [what the model states, else 1]", SAMPLING, "F", above=0),
    ] = None
    """Frames a second; None: what the checkpoint's processor states."""
    frames: Annotated[int | None, Option("frames a chunk, evenly", SAMPLING, "N", above=0)] = None
    """Frames a chunk, evenly; excludes `fps`."""
    max_frames: Annotated[
        int | None,
        Option("at most so many a chunk [the model's, else 32]", SAMPLING, "N", above=0),
    ] = None
    """Maximum frames per chunk; None: the value of the checkpoint's processor."""
    max_pixels: Annotated[
        int | None, Option("at most so many a frame [the model's]", SAMPLING, "N", above=0)
    ] = None
    """At most so many pixels of a picture or a frame, before it is cut in patches; None: what the
    checkpoint's processor states."""
    max_video_pixels: Annotated[
        int | None, Option("at most so many a chunk [the model's]", SAMPLING, "N", above=0)
    ] = None
    """At most so many pixels of all frames of a chunk together; None: what the checkpoint's
    processor states."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.fps is not None and self.frames is not None:
            raise UsageError("--fps and --frames exclude each other", hint="Leave one of them out")
        if self.whole and (self.shots or self.chunk is not None):
            other = "--shots" if self.shots else "--chunk"
            raise UsageError(
                f"--whole and {other} exclude each other", hint="Leave one of them out"
            )


@dataclass(frozen=True, kw_only=True)
class CardOptions(OptionGroup):
    """Whether frames and the system turn follow the model card."""

    sampling_as_card: Annotated[bool, Option("frames and --system as the model's card", TEXT)] = (
        False
    )
    """Take frames and the system turn from what the model's authors state, unless named here."""


@dataclass(frozen=True, kw_only=True)
class VectorSamplingOptions(OptionGroup):
    """The images of a medium that are embedded."""

    fps: Annotated[
        float | None, Option("frames a second of a video [1]", VECTORS, "F", above=0)
    ] = None
    """Frames a second; None: what the checkpoint's processor states."""
    tiles: Annotated[
        str, Option("off, auto, or squares a short side [%(default)s]", VECTORS, "N")
    ] = OFF
    """Squares that pictures are cut in before vectors are made of them: `off`, `auto`, or how many
    fit the short side."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_tiles(self.tiles)
