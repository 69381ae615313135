"""Captions 1,000 small pictures by a stand-in server that takes 50 ms for each answer, 32 at once.

`python -m benchmarks.endpoint` prints answers a second, as a share of what such a server can give
(640), and of what it gives at the same time to a client that only writes and reads bytes, which
says what the machine leaves. It also prints the peak memory of the ask stage.
"""

import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from artifacts.frame_fit import FrameFit
from artifacts.records.packs import Record, RecordSet
from artifacts.records.store import open_store
from stages.ask import AskItem, AskJob
from stages.process.events import StageOutcome
from stages.process.stage_process import ProcessSettings, StageProcess

PICTURES, AT_ONCE, SECONDS = 1000, 32, 0.05
HEIGHT, WIDTH = 96, 128
FRAMES, CAPTIONS = "f" * 64, "c" * 64


def job_in(store: str, port: int) -> AskJob:
    """Store the pictures, and return the job that captions them."""
    random = np.random.default_rng(0)
    meta = {"times": [0.0], "start": 0.0, "end": 0.0, "height": HEIGHT, "width": WIDTH}
    rows = np.linspace(0, 255, WIDTH).astype(np.uint8)
    records, items = [], []
    for at in range(PICTURES):
        pixels = np.broadcast_to(rows[None, :, None], (HEIGHT, WIDTH, 3)).copy()
        pixels[:32, :32] = random.integers(0, 255, 3)
        records.append(Record(key=f"{at:064x}", meta=meta, payload=pixels.tobytes()))
        items.append(AskItem(f"{at + PICTURES:064x}", f"{at:064x}", "image", "Describe it."))
    RecordSet(open_store(store), "frames", FRAMES).publish(records)
    return AskJob(
        store=store,
        frames_namespace=FRAMES,
        namespace=CAPTIONS,
        items=items,
        model="m",
        endpoints=[f"http://127.0.0.1:{port}/v1"],
        fit=FrameFit(),
        at_once=AT_ONCE,
        max_new_tokens=64,
    )


async def _bare(port: int, body: bytes) -> float:
    """Return the answers a second that a client gets which only writes and reads bytes."""
    head = f"POST /v1/chat/completions HTTP/1.1\r\ncontent-length: {len(body)}\r\n\r\n".encode()
    left = iter(range(PICTURES))

    async def one() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for _ in left:
            writer.write(head + body)
            answer = await reader.readuntil(b"\r\n\r\n")
            length = int(answer.lower().partition(b"content-length:")[2].split()[0])
            await reader.readexactly(length)
        writer.close()

    began = time.monotonic()
    await asyncio.gather(*(one() for _ in range(AT_ONCE)))
    return PICTURES / (time.monotonic() - began)


def measure(folder: Path, port: int) -> dict[str, float]:
    """Run the stage once."""
    job = job_in(str(folder / "store"), port)
    settings = ProcessSettings(name="ask", job=job, device="cpu", log=folder / "ask.log")
    stage = StageProcess(
        settings,
        "stages.ask.run:run",
        lambda _, event: events.append((time.monotonic(), type(event).__name__)),
    )
    events: list[tuple[float, str]] = []
    outcome: StageOutcome = stage.wait()
    times = [at for at, name in events if name in ("Total", "Answered")]
    seconds = times[-1] - times[0]
    assert outcome.items == PICTURES
    bare = asyncio.run(_bare(port, b"x" * 3000))
    return {
        "seconds": round(seconds, 3),
        "answers_a_second": round(PICTURES / seconds, 1),
        "share_of_limit": round(PICTURES / seconds * SECONDS / AT_ONCE, 3),
        "share_of_bare_client": round(PICTURES / seconds / bare, 3),
        "bare_client": round(bare, 1),
        "cpu_seconds": round(outcome.cpu_seconds, 2),
        "peak_mib": round(outcome.peak_host_bytes / 2**20, 1),
    }


def main() -> None:
    """Start the server, and print three measurements."""
    command = [sys.executable, "-m", "tests.support.builders.endpoint", "0", str(SECONDS)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        port = int(server.stdout.readline())
        try:
            for _ in range(3):
                with tempfile.TemporaryDirectory() as folder:
                    found = measure(Path(folder), port)
                print(json.dumps({**found, "load": os.getloadavg()[0]}))
        finally:
            server.terminate()


if __name__ == "__main__":
    main()
