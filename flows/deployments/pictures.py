"""Makes thumbnails of a few media in a separate process.

Media are untrusted, and some crash a decoder. Such a crash costs one thumbnail and leaves the
flow's process running.
"""

import base64
import contextlib
import io
import json
import os
import resource
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from flows.results.thumbnails import thumbnail
from stages.process.child import die_with
from stages.process.fork_client import child_environment

SECONDS = 60.0
"""How long all pictures may take together."""
MOST_MEMORY = 4 << 30
"""Bytes of memory that decoding may take."""
SIDE = 160
MOST_BYTES = 10_000
"""Largest size of a picture: pages lie in the server's database."""
QUALITIES = (40, 15, 0)
"""How well a picture is kept that would be too large."""


def pictures_of(media: Mapping[int, tuple[Path, float | None]]) -> dict[int, bytes]:
    """Return pictures in JPEG of these files, of videos the frame at a time, without those that
    cannot be had in time."""
    if not media:
        return {}
    requests = [[place, os.fsencode(path).hex(), time] for place, (path, time) in media.items()]
    try:
        output = subprocess.run(
            [sys.executable, "-P", "-m", "flows.deployments.pictures", str(os.getpid())],
            input=json.dumps(requests).encode(),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=child_environment(),
            timeout=SECONDS,
            check=False,
        ).stdout
    except subprocess.TimeoutExpired as error:
        output = error.stdout or b""
    return pictures_in(output)


def pictures_in(output: bytes) -> dict[int, bytes]:
    """Return what the process wrote before it ended."""
    lines = [line for line in output.splitlines(keepends=True) if line.endswith(b"\n")]
    return {place: base64.b64decode(picture) for place, picture in map(json.loads, lines)}


def main(parent: str) -> None:
    """Say each picture as soon as it is made, in a line of JSON."""
    die_with(int(parent))
    requests = json.load(sys.stdin)
    # Small pictures want no more memory and processor time than this.
    with contextlib.suppress(ValueError, OSError):  # less is allowed already
        resource.setrlimit(resource.RLIMIT_DATA, (MOST_MEMORY, MOST_MEMORY))
        resource.setrlimit(resource.RLIMIT_CPU, (int(SECONDS), int(SECONDS)))
    for place, path, time in requests:
        found = thumbnail(Path(os.fsdecode(bytes.fromhex(path))), time, SIDE)
        if found is not None and (small := _within(found)):
            print(json.dumps([place, base64.b64encode(small).decode()]), flush=True)


def _within(picture: bytes) -> bytes:
    """Return a JPEG in no more bytes than it may have; empty where it cannot be had in so few."""
    from PIL import Image

    for quality in QUALITIES:
        if len(picture) <= MOST_BYTES:
            return picture
        out = io.BytesIO()
        Image.open(io.BytesIO(picture), formats=["JPEG"]).save(out, "JPEG", quality=quality)
        picture = out.getvalue()
    return picture if len(picture) <= MOST_BYTES else b""


if __name__ == "__main__":
    main(sys.argv[1])
