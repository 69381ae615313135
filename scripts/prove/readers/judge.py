"""Reads clips with the readers of others, and prints what each shows; runs in `.venv-readers`.

    python -m scripts.prove.readers.judge TASK.json

The task has `clips` (path → the numbers that it shows), `sets` (format → lists of media) and
`folders` (of Hugging Face data sets, each with its number of rows). Prints a JSON object per line.
"""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

from scripts.prove.readers.sources import HEIGHT, WIDTH, number_in
from tests.support.trainers import RULES


def by_pyav(path: str) -> list[int]:
    with import_module("av").open(path) as container:
        return [number_in(f.to_ndarray(format="gray")) for f in container.decode(video=0)]


def codec_of(path: str) -> str:
    with import_module("av").open(path) as container:
        return str(container.streams.video[0].codec.canonical_name)


def by_header(path: str) -> int:
    with import_module("av").open(path) as container:
        return int(container.streams.video[0].frames)


def by_decord(path: str) -> list[int]:
    reader = import_module("decord").VideoReader(path, num_threads=1)
    return [number_in(reader[at].asnumpy()) for at in range(len(reader))]


def by_opencv(path: str) -> list[int]:
    capture, numbers = import_module("cv2").VideoCapture(path), []
    while (read := capture.read())[0]:
        numbers.append(number_in(read[1]))
    return numbers


def by_opencv_count(path: str) -> int:
    cv2 = import_module("cv2")
    return int(cv2.VideoCapture(path).get(cv2.CAP_PROP_FRAME_COUNT))


def by_torchcodec(path: str) -> list[int]:
    decoder = import_module("torchcodec.decoders").VideoDecoder(path)
    return [number_in(decoder[at].numpy().transpose(1, 2, 0)) for at in range(len(decoder))]


def by_ffmpeg(path: str) -> list[int]:
    words = ["ffmpeg", "-v", "error", "-i", path, "-map", "0:v:0", "-fps_mode", "passthrough"]
    shown = subprocess.run(
        [*words, "-f", "rawvideo", "-pix_fmt", "gray", "-"], capture_output=True, check=True
    )
    frames = import_module("numpy").frombuffer(shown.stdout, "u1").reshape(-1, HEIGHT, WIDTH)
    return [number_in(frame) for frame in frames]


def by_imageio(path: str) -> list[int]:
    frames = import_module("imageio.v3").imiter(path, plugin="FFMPEG")
    return [number_in(frame) for frame in frames]


SHOWS: dict[str, Callable[[str], list[int]]] = {
    "PyAV": by_pyav,
    "decord": by_decord,
    "OpenCV `read`": by_opencv,
    "torchcodec": by_torchcodec,
    "ffmpeg": by_ffmpeg,
    "imageio-ffmpeg": by_imageio,
}
"""Reader → the numbers of the frames that it shows."""
COUNTS: dict[str, Callable[[str], int]] = {
    "header": by_header,
    "OpenCV's count": by_opencv_count,
}
"""Reader → how many frames it counts without decoding."""


LACKS = {"decord": "av1", "OpenCV `read`": "av1"}
"""Reader → codec that its wheel cannot decode, which whole files may have; it says so loudly."""


def judged(path: str, numbers: list[int]) -> dict[str, str]:
    """Return reader → what it shows otherwise than the numbers; empty where it shows those."""
    found: dict[str, str] = {}
    codec = codec_of(path)
    for name, show in SHOWS.items():
        if LACKS.get(name) == codec:
            continue
        try:
            shown = show(path)
            found[name] = "" if shown == numbers else f"shows {_brief(shown)}"
        except Exception as error:  # a library may raise anything
            found[name] = f"{type(error).__name__}: {error}"[:200]
    for name, count in COUNTS.items():
        counted = count(path)
        found[name] = "" if counted == len(numbers) else f"counts {counted}"
    return found


def _brief(numbers: list[int]) -> str:
    ends = f", {numbers[0]} to {numbers[-1]}" if numbers else ""
    return f"{len(numbers)} frames{ends}"


def loaded(folder: str) -> int:
    """Return how many rows `datasets` makes of a folder."""
    sets = import_module("datasets").load_dataset(folder)
    return sum(len(rows) for rows in sets.values())


def lines(task: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield what every reader says, a dict for each file."""
    for path, numbers in task["clips"].items():
        yield {"clip": path, "found": judged(path, numbers)}
    for name, paths in task["sets"].items():
        for path in paths:
            yield {"set": name, "path": path, "found": RULES[name](Path(path))}
    for folder, count in task["folders"].items():
        try:
            yield {"folder": folder, "found": loaded(folder), "rows": count}
        except Exception as error:  # such as a table that it cannot read
            yield {"folder": folder, "found": f"{type(error).__name__}: {error}", "rows": count}


if __name__ == "__main__":
    for line in lines(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))):
        print(json.dumps(line), flush=True)
