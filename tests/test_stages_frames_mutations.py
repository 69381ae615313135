"""Files broken at random, through the real stage in a real process: none ends it, each is cut or
named."""

import json
from collections import Counter
from pathlib import Path

from PIL import Image

from artifacts.keys import hash_file
from artifacts.packs import RecordSet
from artifacts.schema import MediaIndex
from artifacts.store import open_store
from stages.process.events import Event
from stages.process.stage_process import StageProcess
from tests.support.media import picture, write_video
from tests.support.mutations import write_mutations

NAMESPACE = "5c" * 32
COUNT = 300
MEMORY_BYTES = 500 << 20
"""Above what the process takes before it opens a file."""
SECONDS = 240
"""For all of them, on a busy machine; measured: 9 s."""


def sources(folder: Path) -> list[Path]:
    photo = folder / "photo.jpg"
    Image.fromarray(picture(3, 96, 128)).save(photo, quality=90)
    return [
        write_video(folder / "film.mp4", ticks=range(90)),
        write_video(folder / "broadcast.ts", ticks=range(90)),
        write_video(folder / "film.mkv", ticks=range(90)),
        photo,
    ]


def test_of_300_broken_files_each_is_cut_or_named(tmp_path: Path) -> None:
    (tmp_path / "whole").mkdir()
    (tmp_path / "broken").mkdir()
    media = [
        {
            "path": str(path),
            "digest": hash_file(path),
            "kind": "image" if path.suffix == ".jpg" else "video",
            "wanted": None,
        }
        for path in write_mutations(sources(tmp_path / "whole"), tmp_path / "broken", COUNT)
    ]
    job = {
        "store": str(tmp_path / "store"),
        "namespace": NAMESPACE,
        "sampling": {"chunk_seconds": 30, "fps": 1, "frames": None, "max_frames": 8},
        "fit": {"video": [[1.0, 64]], "image": [[1.0, 64]]},
        "media": media,
        "workers": 2,
    }
    opened: Counter[str] = Counter()

    def listen(_: str, event: Event) -> None:
        opened[type(event).__name__] += 1

    entry = "stages.frames.run:run"
    stage = StageProcess(
        "frames", entry, job, device="cpu", log=tmp_path / "frames.log", listen=listen
    )
    assert stage.ended(SECONDS), f"hangs over one of {stage.outcome.in_hand}"
    outcome = stage.wait()
    assert outcome.in_hand == set()
    assert outcome.peak_host_bytes - outcome.notes["loaded_bytes"] < MEMORY_BYTES

    store = open_store(str(tmp_path / "store"))
    cut, refused = RecordSet(store, "media", NAMESPACE), RecordSet(store, "failures", NAMESPACE)
    digests = {m["digest"] for m in media}
    assert len(digests) > COUNT * 0.9
    assert cut.keys() | refused.keys() == digests
    assert not cut.keys() & refused.keys()
    assert opened["Begin"] == opened["Done"] == len(digests)
    indexes = [MediaIndex.from_json(cut.meta(digest)) for digest in sorted(cut.keys())]
    assert all(index.chunks for index in indexes)
    assert len(indexes) > COUNT / 2
    assert sum(bool(index.warnings) for index in indexes) > COUNT / 10
    kinds = Counter(refused.meta(digest)["kind"] for digest in sorted(refused.keys()))
    assert kinds["unexpected"] == 0, json.dumps(kinds)
