"""A table of probabilities that a stand-in of a model server answers by, with `top_logprobs`.

`python -m tests.support.builders.table_server PORT FOLDER TABLE` answers about the pictures of
FOLDER.
TABLE is JSON: file name → words of a prompt → token → probability; `*` stands for all files.
"""

import asyncio
import base64
import io
import json
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tests.support.builders.endpoint import StandIn, _serve, message_of

Row = Mapping[str, Mapping[str, float]]
"""Words of a prompt → token → probability."""
SIDE = 16
"""Pixels of a side of the thumbnails by which a picture is recognized."""
FILLED = 20
"""Tokens of an answer: those of the table, and others that share the rest."""


def choice_of(tokens: Mapping[str, float], filled: int = FILLED) -> dict[str, Any]:
    """A choice whose first token has these probabilities. What they lack of 1 belongs to tokens
    that are no label, but for a hundredth of it; `filled` are stated in all."""
    others = max(0, filled - len(tokens))
    rest = 0.99 * max(0.0, 1 - sum(tokens.values())) / max(1, others)
    every = {**tokens, **{f"~{at}": rest for at in range(others)}}
    ordered = sorted(every.items(), key=lambda pair: -pair[1])
    top = [
        {"token": token, "logprob": math.log(p) if p else -9999.0, "bytes": [*token.encode()]}
        for token, p in ordered
    ]
    own = top[0] if top else {"token": "a", "logprob": 0.0}
    message = {"role": "assistant", "content": own["token"]}
    logprobs = {"content": [{**own, "top_logprobs": top}]}
    return {"index": 0, "message": message, "finish_reason": "length", "logprobs": logprobs}


def picture_in(request: Mapping[str, Any]) -> NDArray[np.float32]:
    """The first picture of a request as a thumbnail [SIDE, SIDE, 3]."""
    parts = request["messages"][-1]["content"]
    address = next(part["image_url"]["url"] for part in parts if part["type"] == "image_url")
    return thumbnail(base64.b64decode(address.partition(",")[2]))


def prompt_in(request: Mapping[str, Any]) -> str:
    return "".join(p["text"] for p in request["messages"][-1]["content"] if p["type"] == "text")


def thumbnail(content: bytes) -> NDArray[np.float32]:
    image = Image.open(io.BytesIO(content)).convert("RGB").resize((SIDE, SIDE))
    return np.asarray(image, dtype=np.float32)


class TableServer(StandIn):
    """A server that answers by a table about the pictures of a folder."""

    def __init__(self, folder: Path, table: Mapping[str, Row]) -> None:
        super().__init__()
        self.table = table
        known = [path for path in sorted(folder.rglob("*")) if path.is_file()]
        self._names = [path.name for path in known]
        self._pictures = np.stack([thumbnail(path.read_bytes()) for path in known])
        self.answer = self.planted

    def planted(self, request: dict[str, Any], digest: str, _: int) -> Any:
        """Answer a probe by the table, and a caption by the name of its picture."""
        away = np.abs(self._pictures - picture_in(request)).mean(axis=(1, 2, 3))
        name = self._names[int(away.argmin())]
        answer = message_of(digest)
        if not request.get("logprobs"):
            answer["choices"][0]["message"]["content"] = f"A picture: {Path(name).stem}."
            return 200, answer
        row = {**self.table.get("*", {}), **self.table.get(name, {})}
        prompt = prompt_in(request)
        tokens = next((row[words] for words in row if words in prompt), {})
        answer["choices"] = [choice_of(tokens)]
        return 200, answer


if __name__ == "__main__":
    ours = TableServer(Path(sys.argv[2]), json.loads(Path(sys.argv[3]).read_text()))
    asyncio.run(_serve(ours, int(sys.argv[1]), lambda _: print(ours.port, flush=True)))
