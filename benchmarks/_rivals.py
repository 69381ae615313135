"""The same encoder behind others' servers: plain FastAPI, which encodes a request at a time on a
thread, and LitServe, which gathers batches.

    python -m benchmarks._rivals fastapi|litserve --port 8000 [--slower 1] [--tower FOLDER]
"""

import argparse
import base64
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks._card_time import Pixels, encode, pixels_of

PATH = "/predict"


class Encoder:
    """What stands behind all of them: a card's time or, of a folder, the tower that it holds."""

    def __init__(self, tower: Path | None, slower: float) -> None:
        self._slower = slower
        self._tower: Any = None
        if tower is not None:
            import torch
            from transformers import AutoModel

            torch.set_num_threads(1)
            self._tower = AutoModel.from_pretrained(tower, dtype="float32").eval()
            self._side: int = self._tower.config.vision_config.image_size

    def pixels(self, picture: bytes) -> Pixels:
        return pixels_of(picture) if self._tower is None else pixels_of(picture, self._side)

    def vectors(self, pictures: Sequence[Pixels]) -> NDArray[np.float16]:
        if self._tower is None:
            return encode(pictures, self._slower).astype(np.float16)
        import torch

        with torch.inference_mode():
            pixels = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2)
            made = self._tower.get_image_features(pixel_values=pixels / 127.5 - 1)
        features: torch.Tensor = getattr(made, "pooler_output", made)
        vectors: NDArray[np.float16] = features.numpy().astype(np.float16)
        return vectors


def told(vector: NDArray[np.float16]) -> dict[str, str]:
    """An answer, as short as Penstock's."""
    return {"embedding": base64.b64encode(vector.tobytes()).decode()}


def fastapi(encoder: Encoder, port: int) -> None:
    """Serve a request at a time: all of it on a thread, and one card for all threads."""
    import uvicorn
    from fastapi import FastAPI, Request
    from fastapi.concurrency import run_in_threadpool

    app, card = FastAPI(), threading.Lock()

    def work(picture: bytes) -> dict[str, str]:
        pixels = encoder.pixels(picture)
        with card:
            return told(encoder.vectors([pixels])[0])

    async def embed(request: Request) -> dict[str, str]:
        return await run_in_threadpool(work, await request.body())

    app.post(PATH)(embed)
    uvicorn.run(app, host="127.0.0.1", port=port, log_level="warning", access_log=False)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("name", choices=("fastapi", "litserve"))
    options.add_argument("--port", type=int, default=8000)
    options.add_argument("--slower", type=float, default=1.0)
    options.add_argument("--tower", type=Path)
    given = options.parse_args()

    if given.name == "fastapi":
        fastapi(Encoder(given.tower, given.slower), given.port)
    else:
        from benchmarks._litserve import serve

        serve(given.tower, given.slower, given.port)


if __name__ == "__main__":
    main()
