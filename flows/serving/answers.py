"""Writes HTTP responses: JSON, and the vectors in it."""

import base64
import json
from typing import Any

import numpy as np
from fastapi.responses import Response
from numpy.typing import NDArray

from artifacts.schema import MediaIndex
from flows.results.vectors import shown_boxes
from flows.serving.embedding import EmbeddedMedium


def json_answer(value: Any, status: int = 200) -> Response:
    """Return an answer in JSON."""
    body = json.dumps(value, ensure_ascii=False, allow_nan=False).encode("utf-8", "replace")
    return Response(body, status, media_type="application/json")


def warnings_of(index: MediaIndex) -> dict[str, Any]:
    """Return the damage of a medium that was survived, as a field of an answer; of a whole medium
    there is none."""
    return {"warnings": list(index.warnings)} if index.warnings else {}


def vectors_json(seen: EmbeddedMedium, encoding: str, *, parts: bool) -> dict[str, Any]:
    """Return the vectors of what was seen, for programs."""

    def told(vector: NDArray[np.float32]) -> Any:
        if encoding == "json":
            return [round(float(value), 6) for value in vector]
        return base64.b64encode(vector.astype("<f2").tobytes()).decode()

    index, first = seen.index, seen.vectors[0]
    found = {
        "kind": index.kind,
        "width": index.width,
        "height": index.height,
        "dimensions": int(first.shape[1]),
        "encoding": encoding,
        "embedding": told(first[0]),
        "key": seen.tasks[0]["embeddings"],
        **warnings_of(index),
    }
    if index.kind == "video":
        pairs = zip(seen.tasks, seen.vectors, strict=True)
        found["embeddings"] = [
            {"time": at, "embedding": told(vector)}
            for task, vectors in pairs
            for at, vector in zip(task.chunk.times, vectors, strict=True)
        ]
    elif parts:
        boxes = shown_boxes(seen.tasks[0], index.width)
        found["embeddings"] = [
            {"box": box, "embedding": told(vector)}
            for box, vector in zip(boxes, first, strict=True)
        ]
    return found
