"""Values and JSON lines of the labels of images and video frames."""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

from artifacts.disk.files import encoded, write_text
from artifacts.disk.json_records import read_record
from artifacts.disk.json_shapes import Json
from artifacts.records.packs import Record

if TYPE_CHECKING:
    from artifacts.records.vectors import Vectors


class Scored(TypedDict):
    """One label of an image, with its score."""

    label: str
    score: float
    """Compared with the threshold: a probability, a cosine, or a share of its group."""
    passed: bool
    """Whether the image is given the label."""
    whole: float
    """The score of the whole image, if a tile scored higher."""
    box: list[int] | None
    """Tile with the highest score, x0 y0 x1 y1 in pixels; null for the whole image."""
    threshold: float | None
    """Minimum score; null if the rule has none."""
    why: str
    """The rule that decided."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Labelled:
    """One line of `labels.jsonl`."""

    media_path: str
    """Path relative to the given folder, or the file's name; POSIX."""
    source: str
    """The command-line argument that included the file."""
    time: float | None
    """Seconds of the medium's own time; null for an image."""
    labels: tuple[Scored, ...]
    """All given labels and the first few others, highest score first."""
    top: str
    """The label with the highest score."""
    model: str
    precision: dict[str, str]
    """Precision of each half: `vision` and `language`."""
    features: str
    """Key of the stored vectors."""
    labels_digest: str
    """Digest of the labels, their texts and their settings."""
    tiles: str = "off"
    """Tiles that the image was cut into."""
    warnings: tuple[str, ...] = ()

    @property
    def given(self) -> list[str]:
        """Return the given labels, highest score first."""
        return [scored["label"] for scored in self.labels if scored["passed"]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Span:
    """A time span of a video with the same labels."""

    start: float
    """Seconds of the first frame."""
    end: float
    """Seconds of the frame after the last, or of the end of the medium."""
    labels: tuple[str, ...]


def read_labels(path: Path) -> Iterator[Labelled]:
    """Yield the lines of a `labels.jsonl`."""
    with path.open(encoding="utf-8") as file:
        for row in map(json.loads, file):
            yield read_record(Labelled, row)


def spans_of(frames: Sequence[tuple[float, Sequence[str]]], end: float) -> Iterator[Span]:
    """Yield the spans of one video from the time and given labels of its frames, in order. `end`
    is the video's end. Spans without labels are left out."""
    first = 0
    for at in range(1, len(frames) + 1):
        start, labels = frames[first]
        if at < len(frames) and sorted(frames[at][1]) == sorted(labels):
            continue
        until = frames[at][0] if at < len(frames) else end
        if labels:
            yield Span(start=start, end=max(until, start), labels=tuple(sorted(labels)))
        first = at


KINDS = {
    "media_path": "text",
    "source": "text",
    "time": "number",
    "labels": "labels",
    "top": "text",
    "model": "text",
    "precision": "precision",
    "features": "text",
    "labels_digest": "text",
    "tiles": "text",
    "warnings": "texts",
}
"""Column of a label table → type."""
assert tuple(KINDS) == Labelled.__slots__
Sized = tuple[Labelled, int, int]
"""The labels of an image, its height and its width in pixels."""


def write_coco(path: Path, labels: Sequence[str], rows: Iterable[Sized]) -> None:
    """Write a COCO annotation for each given label, with its tile or the whole image as the box.
    Raises EnvironmentFault."""
    write_text(path, _pieces(labels, rows))


def _pieces(labels: Sequence[str], rows: Iterable[Sized]) -> Iterator[str]:
    numbers = {name: number for number, name in enumerate(labels, 1)}
    categories: list[Json] = [{"id": number, "name": name} for name, number in numbers.items()]
    yield '{"categories": ' + encoded(categories) + ',\n"images": [\n'
    annotations: list[str] = []
    for number, (row, high, wide) in enumerate(rows, 1):
        image: Json = {"id": number, "file_name": row.media_path, "height": high, "width": wide}
        yield (",\n" if number > 1 else "") + encoded(image)
        for scored in (one for one in row.labels if one["passed"]):
            left, top, right, bottom = scored["box"] or [0, 0, wide, high]
            piece: Json = {
                "id": len(annotations) + 1,
                "image_id": number,
                "category_id": numbers[scored["label"]],
                "bbox": [left, top, right - left, bottom - top],
                "area": (right - left) * (bottom - top),
                "score": scored["score"],
                "iscrowd": 0,
            }
            annotations.append(encoded(piece, ensure_ascii=True))
    yield '\n],\n"annotations": [\n' + ",\n".join(annotations) + "\n]}\n"


Groups = Sequence[Sequence[str]]
"""Texts in groups with the same meaning."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TextVectors:
    """The vectors of groups of texts."""

    vectors: "Vectors"
    """Shape (groups, dimensions), each of length 1."""
    scale: float
    """The model's logit of an image and a text is `scale * cosine + bias`."""
    bias: float
    cut: tuple[str, ...]
    """Texts that exceed the model's length limit."""
    precision: str


def text_vectors_in(record: Record, groups: Groups, precision: str) -> TextVectors:
    """Return the vectors of these groups from a record."""
    from artifacts.records.vectors import vectors_in

    texts, meta = [text for group in groups for text in group], record.meta
    return TextVectors(
        vectors=vectors_in(record),
        scale=float(meta["scale"]),
        bias=float(meta["bias"]),
        cut=tuple(texts[at] for at in meta["cut"]),
        precision=precision,
    )
