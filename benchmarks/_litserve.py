"""The encoder of the benchmark behind LitServe, set as its documentation says is fastest: batches
of at most 32, a short wait, ZeroMQ's queues above a hundred requests a second.

It decodes where it encodes, one picture after the other. A second process for both, with a lock for
the one card, made it no faster on two cores: 270 a second instead of 280. Pictures come in JSON, as
in its examples.
"""

import base64
from pathlib import Path
from typing import Any

import litserve

from benchmarks._card_time import Pixels
from benchmarks._rivals import PATH, Encoder, told

BATCH = 32
WAIT_SECONDS = 0.01
"""With 0 it looks for requests without a pause, and takes a core for itself."""


class Serving(litserve.LitAPI):  # type: ignore[misc]
    """The encoder as LitServe calls it."""

    tower: Path | None = None
    slower = 1.0

    def setup(self, device: str) -> None:
        self.encoder = Encoder(self.tower, self.slower)

    def decode_request(self, request: dict[str, str]) -> Pixels:
        return self.encoder.pixels(base64.b64decode(request["image"]))

    def batch(self, inputs: list[Pixels]) -> list[Pixels]:
        return inputs

    def predict(self, batch: list[Pixels]) -> Any:
        return self.encoder.vectors(batch)

    def unbatch(self, output: Any) -> list[Any]:
        return list(output)

    def encode_response(self, output: Any) -> dict[str, str]:
        return told(output)


def serve(tower: Path | None, slower: float, port: int) -> None:
    """Serve until it is stopped."""
    api = Serving(max_batch_size=BATCH, batch_timeout=WAIT_SECONDS, api_path=PATH)
    api.tower, api.slower = tower, slower
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=1, fast_queue=True)
    server.run(host="127.0.0.1", port=port, log_level="warning", generate_client_file=False)
