"""Makes small pictures of a few media in a process of its own; knows no run.

Media are anybody's, and decoders die of some: that costs a picture, and not the flow's process.
"""

import base64
import contextlib
import io
import json
import os
import resource
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SECONDS = 60.0
"""How long all pictures may take together."""
MOST_MEMORY = 4 << 30
"""Bytes of memory that decoding may take."""
SIDE = 160
MOST_BYTES = 10_000
"""Largest size of a picture: pages lie in the server's database."""
ACROSS = 3
QUALITIES = (40, 15, 0)
"""How well a picture is kept that would be too large."""


@dataclass(frozen=True, slots=True)
class Sheet:
    """Small pictures in JPEG, each with its place in the order asked for, and one of them all."""

    pictures: dict[int, bytes]
    together: bytes
    """Empty where there is no picture."""


EMPTY = Sheet({}, b"")


def contact_sheet(media: Sequence[tuple[Path, float | None]]) -> Sheet:
    """Return pictures of these files, of videos the frame at a time, without those that cannot be
    had in time."""
    asked = json.dumps([[os.fsencode(path).hex(), time] for path, time in media])
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-m", "flows.deployments.contact_sheet", str(os.getpid())],
            input=asked.encode(),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=_environment(),
            timeout=SECONDS,
            check=False,
        )
        said = done.stdout
    except subprocess.TimeoutExpired as error:
        said = error.stdout or b""
    return _read(said)


def _environment() -> dict[str, str]:
    from stages.process.environment import child_environment

    return child_environment()


def _read(said: bytes) -> Sheet:
    """Return what the process has said before it ended, however that was."""
    pictures, together = {}, b""
    for line in said.splitlines(keepends=True):
        if not line.endswith(b"\n"):
            break
        place, picture = json.loads(line)
        if place is None:
            together = base64.b64decode(picture)
        else:
            pictures[place] = base64.b64decode(picture)
    return Sheet(pictures, together)


def main(parent: str) -> None:
    """Say each picture as soon as it is made, in a line of JSON, and at last all of them."""
    from flows.results.thumbnails import thumbnail
    from stages.process.child import die_with

    die_with(int(parent))
    made: dict[int, bytes] = {}
    asked = json.load(sys.stdin)
    _hold_down()
    for place, (path, time) in enumerate(asked):
        found = thumbnail(Path(os.fsdecode(bytes.fromhex(path))), time, SIDE)
        if found is not None and (small := _within(found)):
            made[place] = small
            _say(place, small)
    if made:
        _say(None, _together(made))


def _say(place: int | None, picture: bytes) -> None:
    print(json.dumps([place, base64.b64encode(picture).decode()]), flush=True)


def _hold_down() -> None:
    """Take no more memory and processor time than small pictures can want."""
    with contextlib.suppress(ValueError, OSError):  # less is allowed already
        resource.setrlimit(resource.RLIMIT_DATA, (MOST_MEMORY, MOST_MEMORY))
        resource.setrlimit(resource.RLIMIT_CPU, (int(SECONDS), int(SECONDS)))


def _within(picture: bytes) -> bytes:
    """Return a JPEG in no more bytes than it may have; empty where it cannot be had in so few."""
    from PIL import Image

    for quality in QUALITIES:
        if len(picture) <= MOST_BYTES:
            return picture
        out = io.BytesIO()
        Image.open(io.BytesIO(picture), formats=["JPEG"]).save(out, "JPEG", quality=quality)
        picture = out.getvalue()
    return b""


def _together(made: dict[int, bytes]) -> bytes:
    """Return one picture of all, each with its number, in rows."""
    from PIL import Image, ImageDraw

    down = -(-(max(made) + 1) // ACROSS)
    sheet = Image.new("RGB", (SIDE * min(ACROSS, max(made) + 1), SIDE * down), "white")
    for place, picture in made.items():
        corner = (SIDE * (place % ACROSS), SIDE * (place // ACROSS))
        small: Any = Image.open(io.BytesIO(picture), formats=["JPEG"])
        sheet.paste(small, corner)
        label = ImageDraw.Draw(sheet)
        label.rectangle((*corner, corner[0] + 14, corner[1] + 13), fill="white")
        label.text((corner[0] + 4, corner[1] + 1), str(place + 1), fill="black")
    out = io.BytesIO()
    sheet.save(out, "JPEG", quality=70)
    return out.getvalue()


if __name__ == "__main__":
    main(sys.argv[1])
