"""How often a chunk's features have other bytes because other chunks were encoded with it.

    python -m benchmarks.feature_bytes [--model demo|large] [--precisions bf16,fp32] [--threads 1,2]

The frames stage cuts the demo's samples, drawn clips and damaged ones, which are shortened to a few
lengths. The encode stage encodes each chunk alone, and in batches of equal shapes, in order and
shuffled. Features are compared with those of the chunk alone, byte by byte. With the demo, features
that differ are captioned, each alone in a slot, and the words are compared. Seeds are fixed: the
same options show the same pair again.
"""

import argparse
import random
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from artifacts.keys import digest_of
from artifacts.packs import Record, RecordSet
from artifacts.store import open_store
from benchmarks._common import cells, heads
from benchmarks._models import LARGE, PROMPT, build
from benchmarks._modes import perform
from flows.console.display import Display
from flows.job.prepare import prepare
from flows.machine.launch import DirectLauncher
from flows.options.commands import CaptionConfig
from flows.running.run import caption
from penstock_demo import CHECKPOINT, CLIPS
from penstock_demo.clips import write_clips
from stages.decode.stored import read_features
from stages.memory.meta_tensors import tensors
from stages.models.encoding import FRAMES_A_BATCH
from tests.support.media import spoil

DRAWN, SEED = 40, 7
"""Clips that are drawn beside the samples, and their seed."""
DAMAGED = ("clip-02.mp4", "clip-04.mp4", "clip-07.mp4", "clip-11.mp4")
"""Samples that the benchmark also encodes as damaged copies."""
LENGTHS = {"demo": (1, 4, 7, 10, 16), "large": (1, 4, 10)}
"""Frames of a chunk. The large model gets chunks of one size alone."""
DTYPES = {"bf16": "bfloat16", "fp32": "float32"}
CUT = digest_of("chunks of a few lengths")
ALONE = "alone"
COLUMNS = "model | precision | threads | batches | chunks | other bytes | difference | words"


class Chunk(NamedTuple):
    """A chunk: its clip with the number of frames in brackets, that number, the frames' key."""

    name: str
    length: int
    frames: str


Batch = Sequence[Chunk]


def write_media(folder: Path) -> None:
    """Write the samples, clips that are drawn, and damaged copies of some samples."""
    write_clips(folder / "drawn", DRAWN, SEED)
    (folder / "drawn" / "truth.jsonl").unlink()  # not a list of sources
    shutil.copytree(CLIPS, folder / "sample", ignore=shutil.ignore_patterns("*.jsonl"))
    (folder / "damaged").mkdir()
    for name in DAMAGED:
        spoil(CLIPS / name, folder / "damaged" / name, which=lambda at: at % 40 in range(16, 32))


def cut_chunks(folder: Path, store: str, lengths: Sequence[int]) -> list[Batch]:
    """Caption all clips by the real stages, and publish their first frames as chunks of these
    lengths. Return the chunks of each shape that at least two clips have."""
    write_media(folder / "clips")
    sources = tuple(map(str, sorted((folder / "clips").iterdir())))
    out = str(folder / "out")
    config = CaptionConfig(sources=sources, model="demo", keep_frames=True, out=out, store=store)
    caption(config, Display(quiet=True))
    job = prepare(config, DirectLauncher(lambda *_: None))
    cut = RecordSet(open_store(store), "frames", CUT)
    groups: dict[tuple[int, ...], list[Chunk]] = {}
    for task in sorted(job.ledger.tasks(job.media), key=lambda task: task.medium.path):
        whole, path = job.ledger["frames"].read(task["frames"]), Path(task.medium.path)
        times, size = whole.meta["times"], (whole.meta["height"], whole.meta["width"])
        for count in (count for count in lengths if count <= len(times)):
            name, key = f"{path.parent.name}/{path.name}[{count}]", ["cut", task["frames"], count]
            chunk = Chunk(name, count, digest_of(key))
            end = times[count] if count < len(times) else whole.meta["end"]
            pixels = bytes(whole.payload)[: count * size[0] * size[1] * 3]
            meta = {**whole.meta, "times": times[:count], "end": end}
            cut.publish([Record(key=chunk.frames, meta=meta, payload=pixels)])
            groups.setdefault((*size, count), []).append(chunk)
    return [group for _, group in sorted(groups.items()) if len(group) > 1]


def arranged(groups: Sequence[Batch], size: int, shuffled: bool) -> Iterator[Batch]:
    """Yield batches as a run makes them: of equal shapes, with few chunks of many frames."""
    for group in groups:
        chunks = random.Random(size).sample(group, len(group)) if shuffled else group
        most = max(1, min(size, FRAMES_A_BATCH // group[0].length))
        yield from (chunks[at : at + most] for at in range(0, len(chunks), most))


class Encoded:
    """The features of all chunks, batched in several ways, of one precision and thread count."""

    def __init__(self, job: dict[str, Any], threads: int, ways: dict[str, list[Batch]]) -> None:
        """Run the encode stage once. `job` has the fields that both stages share."""
        torch.set_num_threads(threads)
        space = digest_of(["features", job["model"], job["dtype"], threads])
        self._job = {**job, "frames_namespace": CUT, "features_namespace": space}
        batches = [
            [{"key": key_of(way, c), "frames": c.frames, "kind": "video"} for c in batch]
            for way, some in ways.items()
            for batch in some
        ]
        perform("encode", {**self._job, "namespace": space, "batches": batches})
        self._features = RecordSet(open_store(job["store"]), "features", space)

    def bytes_of(self, way: str, chunk: Chunk) -> bytes:
        return bytes(self._features.read(key_of(way, chunk)).payload)

    def distance(self, way: str, chunk: Chunk) -> float:
        """Return the largest difference of a value from that of the chunk alone."""
        keys = key_of(ALONE, chunk), key_of(way, chunk)
        both = [tensors(read_features(self._features, key).features) for key in keys]
        pairs = zip(*both, strict=True)
        return max(float((one.double() - other.double()).abs().max()) for one, other in pairs)

    def words(self, keys: Sequence[str]) -> dict[str, str]:
        """Return the caption of each of these features, decoded alone in a slot."""
        batches = [[{"key": key, "features": key, "prompt": PROMPT}] for key in keys]
        fields = {"namespace": digest_of(keys), "batches": batches, "engine": "inflight"}
        texts = perform("decode", {**self._job, **fields, "slots": 1}).texts if keys else ()
        return dict(zip(keys, texts, strict=True))


def key_of(way: str, chunk: Chunk) -> str:
    """Return the key of the features that a chunk gets one way."""
    return digest_of(["features", way, chunk.frames])


def compare(name: str, found: Encoded, ways: dict[str, list[Batch]], speaks: bool) -> str:
    """Print a row for each way but alone. Return the first chunk with other words, else with other
    bytes, and its batch; empty if none has."""
    silent, spoken = [], []
    for way, batches in list(ways.items())[1:]:
        pairs = [(chunk, batch) for batch in batches if len(batch) > 1 for chunk in batch]
        differ = [p for p in pairs if found.bytes_of(way, p[0]) != found.bytes_of(ALONE, p[0])]
        keys = [key_of(each, chunk) for chunk, _ in differ for each in (ALONE, way)]
        words = found.words(keys) if speaks else {}
        for chunk, batch in differ:
            alone, there = (words.get(key_of(each, chunk), "") for each in (ALONE, way))
            pair = f"{chunk.name} in {way}: {', '.join(each.name for each in batch)}"
            spoken += [f"{pair}: {there!r}, alone {alone!r}"] if there != alone else []
            silent.append(pair)
        other = sum(words[keys[at]] != words[keys[at + 1]] for at in range(0, len(words), 2))
        most = max((found.distance(way, chunk) for chunk, _ in differ), default=0.0)
        figures = [len(pairs), len(differ), f"{most:.2g}", other if speaks else "not tried"]
        print(cells([name, way, *figures]), flush=True)
    return next(iter([*spoken, *silent]), "")


def main(arguments: Sequence[str] | None = None) -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--model", choices=LENGTHS, default="demo")
    options.add_argument("--precisions", default=",".join(DTYPES))
    options.add_argument("--threads", default="1,2")
    options.add_argument("--sizes", default="3,8", help="of batches")
    given = options.parse_args(arguments)
    demo = given.model == "demo"
    with tempfile.TemporaryDirectory() as made:
        folder, store = Path(made), str(Path(made, "store"))
        groups = cut_chunks(folder, store, LENGTHS[given.model])
        groups = groups if demo else groups[: len(LENGTHS["large"])]
        ways = {ALONE: list(arranged(groups, 1, False))}
        for size in map(int, given.sizes.split(",")):
            ways[f"{size}"] = list(arranged(groups, size, False))
            ways[f"{size} shuffled"] = list(arranged(groups, size, True))
        model = CHECKPOINT if demo else build(folder / "model", LARGE, 1)
        job = {"store": store, "model": str(model), "device": "cpu", "attention": "sdpa"}
        print(f"{sum(map(len, groups))} chunks of {len(groups)} shapes\n\n{heads(COLUMNS)}")
        lines = []
        for precision in given.precisions.split(","):
            alone: list[list[bytes]] = []
            for threads in map(int, given.threads.split(",")):
                settings = {**job, "dtype": DTYPES[precision], "max_new_tokens": 64}
                found = Encoded(settings, threads, ways)
                first = compare(f"{given.model} | {precision} | {threads}", found, ways, demo)
                lines.append(f"{precision}, {threads} threads, first pair: {first or 'none'}")
                alone.append([found.bytes_of(ALONE, c) for group in groups for c in group])
            agree = sum(len(set(each)) == 1 for each in zip(*alone, strict=True))
            lines.append(f"{precision}, alone, equal for all threads: {agree} of {len(alone[0])}")
    print("\n".join(["", *lines]))


if __name__ == "__main__":
    main()
