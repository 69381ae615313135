"""Reads the data sets of an output folder as their trainers read them: by the `dataset.toml` that
stands in them, edits included."""

import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from artifacts.disk.json_records import read_json_file, read_jsonl_file, typed
from artifacts.disk.json_shapes import BYTES, ShapeError
from artifacts.disk.regular_files import read_text
from artifacts.errors import EnvironmentFault, UsageError
from artifacts.texts.edits import REJECTED
from artifacts.texts.shards import media_suffix
from artifacts.texts.trainer_models import TrainerModel, form_of
from artifacts.texts.trainers import (
    CAPTIONS,
    DIFFUSION_PIPE_CONFIG,
    FOLDERS,
    HF_METADATA,
    KOHYA_CONFIG,
    LINES,
    MUSUBI_CONFIG,
    VIDEO_SUFFIXES,
)
from flows.outputs.media_rows import media_with_captions
from flows.outputs.seen.settings import (
    DiffusionPipeSettings,
    KohyaSettings,
    MusubiSettings,
    TrainerSettings,
)

WRITE_AGAIN = "Run the same `penstock caption` command again, which writes it"
S = TypeVar("S")


@dataclass(kw_only=True, slots=True)
class TrainedSample:
    """One image or video of a data set."""

    path: Path
    kind: str
    captions: tuple[str, ...]
    settings: TrainerSettings | None = None
    """The settings of its part of the data set; None: no file states them."""
    size: tuple[int, int] = (0, 0)
    """Width and height in pixels; 0: it cannot be read."""
    rate: float = 0.0
    frames: int = 1
    faults: list["Fault"] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True, slots=True)
class Fault:
    """Something that a trainer does not see of a sample, or should not."""

    rule: str
    text: str
    words: str = ""
    """The words that are never seen."""
    crop: tuple[int, int, int, int] | None = None
    """Left, top, right and bottom of what is trained of a picture, in pixels."""


def samples_of(out: Path, model: TrainerModel) -> list[TrainedSample]:
    """Return what a trainer reads of a run. Raises UsageError if there is no data set for it, and
    EnvironmentFault if it cannot be read."""
    form = form_of(model.trainer)
    if form == "txt":
        return [*_with_texts(out)]
    folder = out / form
    if not folder.is_dir():
        raise UsageError(
            f"{out} has no data set for {model.trainer}",
            hint=f"Run the same `penstock caption` command again with --trainer {model.label}",
        )
    return samples_in(folder, form)


def samples_in(folder: Path, form: str) -> list[TrainedSample]:
    """Return what the trainer of a format reads in the folder of its data set. Raises
    EnvironmentFault, and UsageError for a file that is missing."""
    return [*READERS[form](folder)]


def _kohya(folder: Path) -> Iterator[TrainedSample]:
    config = _config(folder / KOHYA_CONFIG)
    for part in _parts(config, "datasets"):
        for subset in _parts(part, "subsets"):
            settings = _settings(KohyaSettings, subset, folder / KOHYA_CONFIG)
            rows = read_json_file(
                dict[str, _Metadata], _inside(folder, settings.metadata_file), WRITE_AGAIN
            )
            for name, row in rows.items():
                yield TrainedSample(
                    path=_inside(folder, name),
                    kind="image",
                    captions=(row.caption,),
                    settings=settings,
                )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Metadata:
    caption: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Line:
    """A line of musubi-tuner or of the trainers of LTX."""

    caption: str = ""
    image_path: str = ""
    video_path: str = ""
    media_path: str = ""


def _musubi(folder: Path) -> Iterator[TrainedSample]:
    config = _config(folder / MUSUBI_CONFIG)
    for part in _parts(config, "datasets"):
        settings = _settings(MusubiSettings, part, folder / MUSUBI_CONFIG)
        file = settings.video_jsonl_file or settings.image_jsonl_file
        for row in read_jsonl_file(_Line, _inside(folder, file), WRITE_AGAIN):
            yield TrainedSample(
                path=_inside(folder, row.video_path or row.image_path),
                kind="video" if row.video_path else "image",
                captions=(row.caption,),
                settings=settings,
            )


def _diffusion_pipe(folder: Path) -> Iterator[TrainedSample]:
    config = _config(folder / DIFFUSION_PIPE_CONFIG)
    for part in _parts(config, "directory"):
        settings = _settings(DiffusionPipeSettings, part, folder / DIFFUSION_PIPE_CONFIG)
        place = _inside(folder, settings.path)
        rows = read_json_file(dict[str, list[str]], place / CAPTIONS, WRITE_AGAIN)
        for name, captions in rows.items():
            yield TrainedSample(
                path=place / name,
                kind="video" if media_suffix(name) in VIDEO_SUFFIXES else "image",
                captions=tuple(captions),
                settings=settings,
            )


def _ltx(folder: Path) -> Iterator[TrainedSample]:
    for row in read_jsonl_file(_Line, folder / LINES, WRITE_AGAIN):
        path = _inside(folder, row.media_path)
        kind = "image" if path.suffix.lower() in (".png", ".jpg", ".jpeg") else "video"
        yield TrainedSample(path=path, kind=kind, captions=(row.caption,))


@dataclass(frozen=True, kw_only=True, slots=True)
class _HfRow:
    file_name: str
    text: str = ""


def _hf(folder: Path) -> Iterator[TrainedSample]:
    for kind, name in FOLDERS.items():
        for row in read_jsonl_file(_HfRow, folder / name / HF_METADATA, WRITE_AGAIN):
            yield TrainedSample(path=folder / name / row.file_name, kind=kind, captions=(row.text,))


READERS = {
    "hf": _hf,
    "kohya": _kohya,
    "musubi": _musubi,
    "diffusion-pipe": _diffusion_pipe,
    "ltx": _ltx,
}
"""Format → function that yields the samples of a data set."""


def _with_texts(out: Path) -> Iterator[TrainedSample]:
    """Yield the media of a run with what stands in the text file beside each, or else with their
    captions, those that were rejected left out."""
    for medium, captions in media_with_captions(out):
        path = Path(medium.path)
        text = path.with_suffix(".txt")
        kept = [row.caption for row in captions if row.review != REJECTED]
        if text.is_file():
            kept = [read_text(text, BYTES).rstrip("\n")]
        if kept:
            yield TrainedSample(path=path, kind=medium.kind, captions=tuple(kept))


def _config(file: Path) -> dict[str, Any]:
    """Return a `dataset.toml`. Raises EnvironmentFault."""
    try:
        return tomllib.loads(read_text(file, BYTES))
    except FileNotFoundError as error:
        raise EnvironmentFault(f"{file} does not exist", hint=WRITE_AGAIN) from error
    except (OSError, ValueError) as error:
        hint = "Correct it: the trainer refuses it, too"
        raise EnvironmentFault(f"{file} cannot be read as TOML: {error}", hint=hint) from error


def _parts(config: Mapping[str, Any], name: str) -> Iterator[dict[str, Any]]:
    """Yield each table of a list in a configuration, with the values that it takes over."""
    above = {key: value for key, value in config.items() if not isinstance(value, list | dict)}
    above |= {key: v for key, v in config.items() if isinstance(v, list) and key != name}
    above |= config["general"] if isinstance(config.get("general"), dict) else {}
    parts = config.get(name)
    for part in parts if isinstance(parts, list) else []:
        if isinstance(part, dict):
            yield above | part


def _settings(kind: type[S], values: Mapping[str, Any], file: Path) -> S:
    """Return the settings of one part. Raises EnvironmentFault for a value of another type."""
    try:
        return typed(kind, values)
    except ShapeError as error:
        hint = "Correct it: the trainer may refuse it, too"
        raise EnvironmentFault(f"{file}: {error}", hint=hint) from error


def _inside(folder: Path, name: str) -> Path:
    """Return a path that may be relative to the folder of a data set."""
    return folder / name
