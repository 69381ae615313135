"""The encoder of the benchmark behind LitServe, set as its documentation says is fastest: batches
of at most 32, a short wait, ZeroMQ's queues above a hundred requests a second.

It decodes where it encodes, one picture after the other. A second process for both, with a lock for
the one card, made it no faster on two cores: 270 a second instead of 280. Pictures come in JSON, as
in its examples.

    python -m benchmarks._litserve --port 8000
"""

import base64
import sys
from typing import Any

import litserve

from benchmarks._card_time import PATH, Pixels, encode, pixels_of, told

BATCH = 32
WAIT_SECONDS = 0.01
"""With 0 it looks for requests without a pause, and takes a core for itself."""


class Serving(litserve.LitAPI):  # type: ignore[misc]
    """The encoder as LitServe calls it."""

    def setup(self, device: str) -> None:
        pass

    def decode_request(self, request: dict[str, str]) -> Pixels:
        return pixels_of(base64.b64decode(request["image"]))

    def batch(self, inputs: list[Pixels]) -> list[Pixels]:
        return inputs

    def predict(self, batch: list[Pixels]) -> Any:
        return encode(batch)

    def unbatch(self, output: Any) -> list[Any]:
        return list(output)

    def encode_response(self, output: Any) -> dict[str, str]:
        return told(output)


def main(port: int) -> None:
    """Serve until it is stopped."""
    api = Serving(max_batch_size=BATCH, batch_timeout=WAIT_SECONDS, api_path=PATH)
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=1, fast_queue=True)
    server.run(host="127.0.0.1", port=port, log_level="warning", generate_client_file=False)


if __name__ == "__main__":
    main(int(sys.argv[2]))
