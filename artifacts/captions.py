"""Captions and failures as files for people and programs: jsonl, txt, vtt; knows nothing of where
they come from."""

import json
import os
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from artifacts.store import fault_of


@dataclass(frozen=True, kw_only=True, slots=True)
class Caption:
    """One line of `captions.jsonl`: what was said of one chunk."""

    media_path: str
    """Relative to the folder given, or the file's name; POSIX."""
    source: str
    """The argument that brought the file in."""
    start: float
    """Seconds of the medium's own time; 0 for an image."""
    end: float
    """Seconds of the medium's own time; 0 for an image."""
    caption: str
    model: str
    prompt: str
    precision: dict[str, str]
    """`vision` and `language`: what each half computed in."""
    frames: tuple[float, ...]
    """Times in seconds of the frames the model saw."""
    features: str
    """Key of the stored features."""
    tokens: int
    """How many tokens were generated."""
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Failure:
    """One line of `failures.jsonl`: what could not be captioned, why, and what to do."""

    media_path: str
    source: str
    stage: str
    """Where it came to light: `sources` or a stage's name."""
    error: str
    """A stable word for programs, such as `missing` or `no-video`."""
    message: str
    hint: str


def write_jsonl(path: Path, rows: Iterable[Caption | Failure]) -> None:
    """One JSON object a line, in order; the file appears whole. Raises EnvironmentFault."""
    write_text(path, (json.dumps(asdict(row), ensure_ascii=False) + "\n" for row in rows))


def write_json(path: Path, value: Any) -> None:
    """A JSON file for people to read; it appears whole. Raises EnvironmentFault."""
    write_text(path, [json.dumps(value, indent=1, ensure_ascii=False) + "\n"])


def write_text(path: Path, pieces: Iterable[str]) -> None:
    """A UTF-8 file that is either the old one or the new one, never half of it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, half = tempfile.mkstemp(dir=path.parent, prefix=".penstock-")
        try:
            with os.fdopen(handle, "w", encoding="utf-8", errors="replace") as file:
                os.fchmod(file.fileno(), 0o666 & ~_umask())
                file.writelines(pieces)
                file.flush()
                os.fsync(file.fileno())
            os.replace(half, path)
        except BaseException:
            os.unlink(half)
            raise
    except OSError as error:
        raise fault_of(error, path.parent) from error


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def text_lines(captions: Sequence[Caption]) -> Iterator[str]:
    """One line a chunk; line breaks inside a caption become spaces."""
    for caption in captions:
        yield " ".join(caption.caption.split()) + "\n"


def vtt_lines(captions: Sequence[Caption]) -> Iterator[str]:
    """A WebVTT track with one cue a chunk. Source: W3C WebVTT, section 4.1."""
    yield "WEBVTT\n"
    for caption in captions:
        text = " ".join(caption.caption.split())
        text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
        end = max(caption.end, caption.start + 0.001)
        yield f"\n{vtt_time(caption.start)} --> {vtt_time(end)}\n{text}\n"


def vtt_time(seconds: float) -> str:
    """`hh:mm:ss.mmm`, rounded to the millisecond."""
    milliseconds = round(seconds * 1000)
    minutes, milliseconds = divmod(milliseconds, 60_000)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02d}:{minutes:02d}:{milliseconds // 1000:02d}.{milliseconds % 1000:03d}"


WRITERS = {"txt": text_lines, "vtt": vtt_lines}
"""Formats that make one file a medium, by suffix."""


def file_stems(media_paths: Sequence[str]) -> list[str]:
    """A name without suffix for each medium, no two alike: `a`; `a.mp4` and `a.mkv`; `a.mp4-2`."""
    bare = [PurePosixPath(path).with_suffix("").as_posix() for path in media_paths]
    shared = Counter(bare)
    stems: list[str] = []
    taken: Counter[str] = Counter()
    for path, stem in zip(media_paths, bare, strict=True):
        wanted = name = stem if shared[stem] == 1 else path
        while name in taken:
            taken[wanted] += 1
            name = f"{wanted}-{taken[wanted]}"
        taken[name] += 1
        stems.append(name)
    return stems
