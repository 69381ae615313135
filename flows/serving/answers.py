"""Returns parts of HTTP responses: vectors, and warnings."""

import base64
from typing import Any

import numpy as np
from numpy.typing import NDArray

from artifacts.schema import MediaIndex
from flows.results.vectors import shown_boxes
from flows.serving.embedding import EmbeddedMedium


def warnings_of(index: MediaIndex) -> dict[str, Any]:
    """Return the decode warnings of a medium as a response field; empty for an intact medium."""
    return {"warnings": list(index.warnings)} if index.warnings else {}


def vectors_json(medium: EmbeddedMedium, encoding: str, *, parts: bool) -> dict[str, Any]:
    """Return the vectors of an embedded medium as JSON."""

    def encode_vector(vector: NDArray[np.float32]) -> Any:
        if encoding == "json":
            return [round(float(value), 6) for value in vector]
        return base64.b64encode(vector.astype("<f2").tobytes()).decode()

    index, first = medium.index, medium.vectors[0]
    answer = {
        "kind": index.kind,
        "width": index.width,
        "height": index.height,
        "dimensions": int(first.shape[1]),
        "encoding": encoding,
        "embedding": encode_vector(first[0]),
        "key": medium.tasks[0]["embeddings"],
        **warnings_of(index),
    }
    if index.kind == "video":
        pairs = zip(medium.tasks, medium.vectors, strict=True)
        answer["embeddings"] = [
            {"time": at, "embedding": encode_vector(vector)}
            for task, vectors in pairs
            for at, vector in zip(task.chunk.times, vectors, strict=True)
        ]
    elif parts:
        boxes = shown_boxes(medium.tasks[0], index.width)
        answer["embeddings"] = [
            {"box": box, "embedding": encode_vector(vector)}
            for box, vector in zip(boxes, first, strict=True)
        ]
    return answer
