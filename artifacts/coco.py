"""Writes the labels of pictures in the form of the COCO data set, which other tools read. It knows
nothing of where they come from.

Source: cocodataset.org/#format-data, object detection; `score` is that of its results.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from artifacts.files import write_text
from artifacts.labels import Labelled

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
