"""The frames that a run stored, and what a processor is given of them, read without a model."""

from typing import Any

import numpy as np

from artifacts.records.keys import content_key, hash_file, item_key
from artifacts.records.packs import read_header
from artifacts.records.store import FolderStore
from tests.support.pipeline import Place

Frames = Any


def stored_frames(place: Place) -> dict[str, tuple[dict[str, Any], Frames]]:
    """Key of a chunk's frames → (description, pixels of shape (T, H, W, 3))."""
    store = FolderStore(place.store)
    found = {}
    for name in store.list("frames"):
        for key, at in read_header(store, name):
            shape = (len(at.meta["times"]), at.meta["height"], at.meta["width"], 3)
            pixels = np.frombuffer(bytearray(store.get(name, at.offset, at.length)), np.uint8)
            found[key] = (at.meta, pixels.reshape(shape))
    return found


def frames_of(place: Place) -> list[tuple[dict[str, Any], Frames]]:
    """The stored frames of each line of the run's captions, in order."""
    frames = stored_frames(place)
    namespace = next(FolderStore(place.store).list("frames")).split("/")[2]
    found = []
    chunks: dict[str, list[float]] = {}
    for row in place.captions():
        name = row["media_path"]
        starts = chunks.setdefault(name, [])
        if row["start"] not in starts:  # else another prompt about the same chunk
            starts.append(row["start"])
        kind = "image" if row["start"] == row["end"] else "video"
        digest = content_key(hash_file(place.clips / name), kind)
        at = starts.index(row["start"])
        found.append(frames[item_key(namespace, digest, at)])
    return found


def turn(processor: Any, kind: str, prompt: str) -> str:
    content = [{"type": kind}, {"type": "text", "text": prompt}]
    text: str = processor.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
    )
    return text


def media_of(kind: str, chunks: list[tuple[dict[str, Any], Frames]]) -> dict[str, Any]:
    if kind == "image":
        return {"images": [[pixels[0]] for _, pixels in chunks]}
    metadata = []
    for meta, pixels in chunks:
        times = [time - meta["start"] for time in meta["times"]]
        gap = (times[-1] - times[0]) / (len(times) - 1) if len(times) > 1 else 1.0
        fps = 1 / gap
        metadata.append(
            {
                "fps": fps,
                "total_num_frames": len(times),
                "duration": meta["end"] - meta["start"],
                "frames_indices": [time * fps for time in times],
                "height": pixels.shape[1],
                "width": pixels.shape[2],
            }
        )
    return {
        "videos": [pixels for _, pixels in chunks],
        "video_metadata": metadata,
        "do_sample_frames": False,
    }
