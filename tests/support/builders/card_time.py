"""Penstock's server with an encoder that takes a card's time: it sleeps for as long as a card would
compute. Decoding, queue, processes and HTTP are the server's own.

Vectors are the pictures themselves, small, so that each can be told from all others.

    python -m tests.support.builders.card_time [--slower 1] ANY OPTION OF penstock serve
"""

import argparse
import io
import os
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SIDE, GRAIN = 224, 16
START_SECONDS, PICTURE_SECONDS = 0.008, 0.0015
"""What a card of the middle takes for a batch of a CLIP's ViT-B, and for each picture of it."""
SLOWER = "PENSTOCK_BENCH_SLOWER"
"""In the environment: times as long as a card takes."""
Pixels = NDArray[np.uint8]
"""[SIDE, SIDE, 3]: the rest of what a CLIP's processor does is done on the card."""


def encode(pictures: Sequence[Pixels], slower: float = 1.0) -> NDArray[np.float32]:
    """A vector of each picture, after as long as a card takes."""
    time.sleep(slower * (START_SECONDS + PICTURE_SECONDS * len(pictures)))
    step = SIDE // GRAIN
    grains = [pixels[step // 2 :: step, step // 2 :: step].ravel() for pixels in pictures]
    found: NDArray[np.float32] = np.divide(np.stack(grains), 255, dtype=np.float32)
    return found


def pixels_of(picture: bytes) -> Pixels:
    """A JPEG, decoded no larger than it has to be."""
    image: Any = Image.open(io.BytesIO(picture))
    image.draft("RGB", (SIDE, SIDE))
    return scaled(image.convert("RGB"))


def scaled(image: Image.Image) -> Pixels:
    if image.size != (SIDE, SIDE):
        image = image.resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    return np.asarray(image)


def run(values: dict[str, Any], report: Any) -> None:
    """Publish a vector of each image that is sent, as a persistent embed stage does."""
    from artifacts.records.packs import RecordSet
    from artifacts.records.store import open_store
    from artifacts.records.vectors import vector_record
    from stages.embed import EmbedJob
    from stages.models.encoding import EncodeItem
    from stages.models.encoding.run import read_clip
    from stages.models.prefetch import Prefetched, write_behind
    from stages.process.job import parse_job
    from stages.process.requests import Requests

    job, slower = parse_job(EmbedJob, values), float(os.environ.get(SLOWER, "1"))
    frames = RecordSet(open_store(job.frames_store or job.store), "frames", job.frames_namespace)
    records = RecordSet(open_store(job.store), "embeddings", job.namespace)

    def batches() -> Iterator[list[EncodeItem]]:
        for sent in Requests(job.requests, EncodeItem, report):
            for batch in sent:
                for one in batch:
                    frames.look_up_pack([one.item.frames])
                yield [one.item for one in batch]

    def read(batch: list[EncodeItem]) -> tuple[list[EncodeItem], list[list[Pixels]]]:
        return batch, [
            [scaled(Image.fromarray(frame)) for frame in read_clip(frames, member).frames]
            for member in batch
        ]

    def publish(made: list[tuple[list[EncodeItem], list[NDArray[np.float32]]]]) -> None:
        pairs = [pair for batch, rows in made for pair in zip(batch, rows, strict=True)]
        records.publish([vector_record(member.key, vectors) for member, vectors in pairs])
        keys = tuple(member.key for member, _ in pairs)
        report.answered(*keys)
        records.forget(keys)
        frames.drop([member.frames for member, _ in pairs])

    report.note(ready=True)
    with write_behind(publish) as later, Prefetched(batches(), read) as ready:
        for batch, shown in ready:
            vectors = encode([pixels for some in shown for pixels in some], slower)
            ends = np.cumsum([len(some) for some in shown])[:-1]
            later((batch, np.split(vectors, ends)))


def main() -> None:
    # A stage's process imports this module, too, and none of these.
    from flows.commands.shared.arguments import config_from
    from flows.commands.shared.parser import parser
    from flows.core.console.display import Display
    from flows.core.machine.launch import ENTRIES, DirectLauncher
    from flows.core.options.serving import ServeConfig
    from flows.interfaces.serve.server import serve

    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--slower", type=float, default=1.0)
    given, rest = options.parse_known_args()
    if "--model" not in rest:
        rest += ["--model", "demo"]
    os.environ[SLOWER] = str(given.slower)
    entries = {**ENTRIES, "embed": "tests.support.builders.card_time:run"}
    config = config_from(parser().parse_args(["serve", *rest]), ServeConfig)
    serve(config, Display(), lambda listen: DirectLauncher(listen, entries))


if __name__ == "__main__":
    main()
