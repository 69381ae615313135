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
from flows.outputs.record.run_read import load_record
from flows.outputs.seen.settings import (
    DiffusionPipeSettings,
    KohyaSettings,
    MusubiSettings,
    TrainerSettings,
)

WRITE_AGAIN = (
    "Run the same `penstock caption` command again, with --out of this folder: it writes it"
)
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
    measures: dict[str, float] = field(default_factory=dict)
    """Rule → what is measured for it, whether or not that is a fault: tokens, percent that are cut
    off, times that it is enlarged, seconds, samples of one caption."""
    crop: tuple[int, int, int, int] | None = None
    """Left, top, right and bottom of what is trained of a picture, in pixels; None: unknown."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Fault:
    """Something that a trainer does not see of a sample, or should not."""

    rule: str
    text: str
    words: str = ""
    """The words that are never seen, of the rule `tokens`."""
    crop: tuple[int, int, int, int] | None = None
    """Left, top, right and bottom of what is trained of a picture, in pixels."""


def samples_of(out: Path, model: TrainerModel) -> list[TrainedSample]:
    """Return what a trainer reads of a run. Raises UsageError if there is no data set for it, and
    EnvironmentFault if it cannot be read."""
    form = form_of(model.trainer)
    folder = out / form
    if form == "txt":
        samples = [*samples_with_texts(out)]
    else:
        samples = samples_in(folder, form) if folder.is_dir() else []
    if not samples and (form == "txt" or not folder.is_dir()):
        raise UsageError(
            f"{out} has no data set for {model.trainer}",
            hint=f"Run the same `penstock caption` command again with --trainer {model.label}",
        )
    return samples


def samples_in(folder: Path, form: str) -> list[TrainedSample]:
    """Return what the trainer of a format reads in the folder of its data set. Raises
    EnvironmentFault."""
    try:
        return [*READERS[form](folder)]
    except UsageError as error:  # a file that the settings name
        raise EnvironmentFault(error.message, hint=error.hint) from error


def _kohya(folder: Path) -> Iterator[TrainedSample]:
    config = _config(folder / KOHYA_CONFIG)
    for part in _parts(config, "datasets"):
        for subset in _parts(part, "subsets"):
            settings = _settings(KohyaSettings, subset, folder / KOHYA_CONFIG)
            _refuse_unnamed(settings.metadata_file, "metadata_file", folder / KOHYA_CONFIG)
            separator = subset.get("caption_separator", ",")
            rows = read_json_file(
                dict[str, _Metadata], _inside(folder, settings.metadata_file), WRITE_AGAIN
            )
            for name, row in rows.items():
                yield TrainedSample(
                    path=_inside(folder, name),
                    kind="image",
                    captions=(str(separator).join(filter(None, (row.caption, row.tags))),),
                    settings=settings,
                )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Metadata:
    caption: str = ""
    tags: str = ""
    """They are put behind the caption."""


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
        _refuse_unnamed(file, "image_jsonl_file or video_jsonl_file", folder / MUSUBI_CONFIG)
        for row in _lines(_inside(folder, file)):
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
        _refuse_unnamed(settings.path, "path", folder / DIFFUSION_PIPE_CONFIG)
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
    for row in _lines(folder / LINES):
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


def _lines(file: Path) -> list[_Line]:
    """Return the lines of a list of media. Raises EnvironmentFault if it is missing."""
    if not file.is_file():
        raise EnvironmentFault(f"{file} does not exist, or is no file", hint=WRITE_AGAIN)
    return read_jsonl_file(_Line, file, WRITE_AGAIN)


def _refuse_unnamed(value: str, key: str, file: Path) -> None:
    """Raise EnvironmentFault for a part of a data set in a form that is not read here."""
    if not value:
        raise EnvironmentFault(
            f"{file} has a part without {key}, which is not read here",
            hint="Check what `penstock caption` wrote, in a file without that part",
        )


def samples_with_texts(out: Path) -> Iterator[TrainedSample]:
    """Yield the media of a run with what stands in the text of each: in the run's folder, or beside
    it. Nothing is yielded if there are no texts."""
    media = [*media_with_captions(out)]
    is_beside = any(texts.beside for texts in load_record(out).texts if texts.format == "txt")
    inside = {medium.name: (out / medium.media_path).with_suffix(".txt") for medium, _ in media}
    beside = {medium.name: Path(medium.path).with_suffix(".txt") for medium, _ in media}
    # During a run its record does not name the texts yet.
    places = [beside, inside] if is_beside else [inside, beside]
    texts = next((files for files in places if any(map(Path.is_file, files.values()))), {})
    for medium, captions in media if texts else ():
        accepted = [row.caption for row in captions if row.review != REJECTED]
        path, text = Path(medium.path), texts[medium.name]
        sample = TrainedSample(path=path, kind=medium.kind, captions=tuple(accepted))
        if len(captions) < 2:  # texts of several chunks or prompts have names of their own
            try:
                sample.captions = (read_text(text, BYTES).rstrip("\n"),)
            except (OSError, ValueError) as error:
                sample.captions = () if isinstance(error, FileNotFoundError) else sample.captions
                if sample.captions:
                    why = f"its text {text.name} cannot be read: {error}"
                    sample.faults.append(Fault(rule="unreadable", text=why))
        if captions:
            yield sample


def _config(file: Path) -> dict[str, Any]:
    """Return a `dataset.toml`. Raises EnvironmentFault."""
    try:
        return tomllib.loads(read_text(file, BYTES))
    except FileNotFoundError as error:
        raise EnvironmentFault(f"{file} does not exist", hint=WRITE_AGAIN) from error
    except OSError as error:
        hint = "Give this user the right to read it"
        raise EnvironmentFault(f"{file} cannot be read: {error.strerror}", hint=hint) from error
    except (ValueError, RecursionError) as error:
        hint = "Correct it: the trainer refuses it, too"
        raise EnvironmentFault(f"{file} cannot be read as TOML: {error}", hint=hint) from error


def _parts(config: Mapping[str, Any], name: str) -> Iterator[dict[str, Any]]:
    """Yield each table of a list in a configuration, with the values that it takes over."""
    above = {key: value for key, value in config.items() if key not in ("general", name)}
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
