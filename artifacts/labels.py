"""Values and JSON lines of the labels of images and video frames."""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

from artifacts.files import write_text


class Scored(TypedDict):
    """One label of an image, with its score."""

    label: str
    score: float
    """What is compared with the threshold: a probability, a cosine, or a share of its group."""
    passed: bool
    """Whether the picture is given it."""
    whole: float
    """The score of the whole picture, where a part of it scored more."""
    box: list[int] | None
    """Part of the picture that scored most, x0 y0 x1 y1 in pixels; null for all of it."""
    threshold: float | None
    """Least score by which it is given; null where a rule has none."""
    why: str
    """The rule by which it was decided."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Labelled:
    """One line of `labels.jsonl`."""

    media_path: str
    """Path relative to the folder given, or the file's name; POSIX."""
    source: str
    """The argument that brought the file in."""
    time: float | None
    """Seconds of the medium's own time; null for a picture."""
    labels: tuple[Scored, ...]
    """All that it is given, and the first few of the others, the highest score first."""
    top: str
    """The label of the highest score."""
    model: str
    precision: dict[str, str]
    """`vision` and `language`: what each half computed in."""
    features: str
    """Key of the stored vectors."""
    labels_digest: str
    """Digest of the labels, their texts and their settings."""
    tiles: str = "off"
    """Parts that the picture was cut in."""
    warnings: tuple[str, ...] = ()

    @property
    def given(self) -> list[str]:
        """Return the labels that it is given, the highest score first."""
        return [scored["label"] for scored in self.labels if scored["passed"]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Span:
    """A time span of a video with the same labels."""

    start: float
    """Seconds of the first frame."""
    end: float
    """Seconds of the frame after the last, or of the end of the medium."""
    labels: tuple[str, ...]


def spans_of(rows: list[Labelled], end: float) -> Iterator[Span]:
    """Yield the stretches of one video, whose frames are in order; `end` is when it ends. What has
    no label is left out."""
    first = 0
    for at in range(1, len(rows) + 1):
        if at < len(rows) and sorted(rows[at].given) == sorted(rows[first].given):
            continue
        until = rows[at].time if at < len(rows) else end
        if rows[first].given:
            yield Span(
                start=rows[first].time or 0.0,
                end=max(until or 0.0, rows[first].time or 0.0),
                labels=tuple(sorted(rows[first].given)),
            )
        first = at


def schema() -> Any:
    """Return the columns of a table of labels."""
    import pyarrow as pa

    text, number = pa.string(), pa.float64()
    scored = pa.struct(
        [
            ("label", text),
            ("score", number),
            ("passed", pa.bool_()),
            ("whole", number),
            ("box", pa.list_(pa.int64())),
            ("threshold", number),
            ("why", text),
        ]
    )
    found = pa.schema(
        [
            ("media_path", text),
            ("source", text),
            ("time", number),
            ("labels", pa.list_(scored)),
            ("top", text),
            ("model", text),
            ("precision", pa.struct([("vision", text), ("language", text)])),
            ("features", text),
            ("labels_digest", text),
            ("tiles", text),
            ("warnings", pa.list_(text)),
        ]
    )
    assert tuple(found.names) == Labelled.__slots__
    return found


Sized = tuple[Labelled, int, int]
"""The labels of a picture, its height and its width in pixels."""


def write_coco(path: Path, labels: Sequence[str], rows: Iterable[Sized]) -> None:
    """Write an annotation for each label that a picture is given: of the part in which it was seen,
    or of all of it. Raises EnvironmentFault."""
    write_text(path, _pieces(labels, rows))


def _pieces(labels: Sequence[str], rows: Iterable[Sized]) -> Iterator[str]:
    numbers = {name: number for number, name in enumerate(labels, 1)}
    categories = [{"id": number, "name": name} for name, number in numbers.items()]
    yield '{"categories": ' + json.dumps(categories, ensure_ascii=False) + ',\n"images": [\n'
    annotations: list[str] = []
    for number, (row, high, wide) in enumerate(rows, 1):
        image = {"id": number, "file_name": row.media_path, "height": high, "width": wide}
        yield (",\n" if number > 1 else "") + json.dumps(image, ensure_ascii=False)
        for scored in (one for one in row.labels if one["passed"]):
            left, top, right, bottom = scored["box"] or [0, 0, wide, high]
            made = {
                "id": len(annotations) + 1,
                "image_id": number,
                "category_id": numbers[scored["label"]],
                "bbox": [left, top, right - left, bottom - top],
                "area": (right - left) * (bottom - top),
                "score": scored["score"],
                "iscrowd": 0,
            }
            annotations.append(json.dumps(made))
    yield '\n],\n"annotations": [\n' + ",\n".join(annotations) + "\n]}\n"
