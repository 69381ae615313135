"""Which stages a chunk with sound needs, and which keys it shares with the same chunk without."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from artifacts.records.packs import Record
from artifacts.records.store import FolderStore
from artifacts.schema import ChunkIndex, MediaIndex
from flows.core.ledger.ledger import Ledger, stages_with_work
from flows.core.ledger.namespaces import Variant, Variants
from flows.core.ledger.tasks import Medium, Task
from flows.core.pipelines import CAPTION, HEARING, with_hearing
from flows.core.plan.ladder import Rung
from flows.core.plan.sizes import Estimate
from flows.core.plan.store_limit import SMALL_BYTES, StoreLimit
from flows.execution.batches import next_work
from stages import hear, sound

PIPELINE = with_hearing(CAPTION)
FRAMES, _, ENCODE, _, DECODE = PIPELINE
SILENT = Variant(
    of={"frames": "f" * 64, "features": "e" * 64, "captions": "c" * 64},
    prompted=frozenset(["captions"]),
    precision={"vision": "fp32", "language": "fp32"},
)
HEARS = replace(
    SILENT,
    of={**SILENT.of, "sound": "5" * 64, "heard": "4" * 64, "captions": "d" * 64},
    precision={**SILENT.precision, "audio": "fp32"},
)
VIDEO = Medium(digest="v", path="/v.mp4", kind="video", prompt="Describe.")
IMAGE = Medium(digest="i", path="/i.png", kind="image", prompt="Describe.")


def ledger(tmp_path: Path) -> Ledger:
    """Return the ledger of a video of two chunks and an image, whose frames were cut."""
    made = Ledger(FolderStore(tmp_path), PIPELINE, HEARS, SILENT)
    size: Any = {"height": 4, "width": 4}
    for medium, count in ((VIDEO, 2), (IMAGE, 1)):
        chunks = tuple(
            ChunkIndex(index=at, start=30.0 * at, end=30.0 * (at + 1), times=(30.0 * at,), **size)
            for at in range(count)
        )
        index = MediaIndex(kind="video", duration=60.0, chunks=chunks, **size)
        made.records.media.publish([Record(key=medium.digest, meta=index.to_json())])
    return made


def silence(book: Ledger, task: Task) -> None:
    """Note that the sound stage found no sound in this chunk."""
    assert book.records.silences is not None
    book.records.silences.publish([Record(key=task["sound"])])
    book.refresh()


def make(book: Ledger, kind: str, *tasks: Task) -> None:
    book[kind].publish([Record(key=task[kind]) for task in tasks])
    book.refresh()


def test_the_stages_of_a_caption_run_in_this_order() -> None:
    assert [s.name for s in PIPELINE] == ["frames", "sound", "encode", "hear", "decode"]
    assert HEARING == (sound.STAGE, hear.STAGE)


def test_a_chunk_of_an_unread_track_may_have_sound_and_an_image_has_none(tmp_path: Path) -> None:
    book = ledger(tmp_path)
    first, second, image = book.tasks([VIDEO, IMAGE])
    assert [first.variant, second.variant, image.variant] == [HEARS, HEARS, SILENT]
    assert not {"sound", "heard"} & image.keys.keys()
    assert book.has(image, sound.STAGE) and book.has(image, hear.STAGE)
    assert stages_with_work(book, [VIDEO, IMAGE]) == list(PIPELINE[1:])


def test_a_chunk_without_sound_has_the_keys_of_a_run_without_sound(tmp_path: Path) -> None:
    book, plain = ledger(tmp_path), Ledger(FolderStore(tmp_path), CAPTION, SILENT)
    silence(book, book.tasks([VIDEO])[1])
    heard, silent = book.tasks([VIDEO])
    assert (heard.variant, silent.variant) == (HEARS, SILENT)
    first, second, image = plain.tasks([VIDEO, IMAGE])
    assert [silent.keys, *(t.keys for t in book.tasks([IMAGE]))] == [second.keys, image.keys]
    assert [heard[k] for k in ("frames", "features")] == [first["frames"], first["features"]]
    assert heard["captions"] != first["captions"]


def test_a_chunk_without_sound_is_not_asked_what_is_heard(tmp_path: Path) -> None:
    silent = replace(SILENT, silent_prompts={"Describe what is seen and heard.": "Describe."})
    book, plain = ledger(tmp_path), Ledger(FolderStore(tmp_path), CAPTION, SILENT)
    book.variants = Variants((HEARS, silent))
    asked = replace(VIDEO, prompt="Describe what is seen and heard.")
    silence(book, book.tasks([asked])[1])
    heard, seen = book.tasks([asked])
    assert (heard.prompt, seen.prompt) == (asked.prompt, "Describe.")
    assert seen["captions"] == plain.tasks([VIDEO])[1]["captions"]


def test_features_of_sound_do_not_depend_on_how_frames_are_sampled(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    book = ledger(tmp_path)
    sampled = {"frames": "0" * 64, "features": "1" * 64}
    others = (replace(each, of={**each.of, **sampled}) for each in (HEARS, SILENT))
    other = Ledger(store, PIPELINE, *others)
    other.records.media.publish([Record(key="v", meta=book.records.media.meta("v"))])
    one, same = book.tasks([VIDEO])[0], other.tasks([VIDEO])[0]
    assert one["heard"] == same["heard"] and one["features"] != same["features"]


def test_a_record_is_needed_until_each_stage_that_reads_it_is_done(tmp_path: Path) -> None:
    book = ledger(tmp_path)
    (first, second) = book.tasks([VIDEO])
    make(book, "features", first)
    assert book.has(first, FRAMES) and not book.has(first, sound.STAGE)
    make(book, "heard", second)
    assert book.has(second, sound.STAGE) and not book.has(second, ENCODE)
    assert not book.has(second, FRAMES)
    make(book, "captions", first)
    done = book.tasks([VIDEO])[0]
    assert all(book.has(done, stage) for stage in PIPELINE)
    assert not book.has(book.tasks([VIDEO])[1], DECODE)


def test_sound_that_was_encoded_is_not_read_again_beside_other_chunks(tmp_path: Path) -> None:
    book = ledger(tmp_path)
    first, second = book.tasks([VIDEO])
    make(book, "heard", first)
    job: Any = SimpleNamespace(ledger=book, config=SimpleNamespace(batch_size=16), model=None)
    work = next_work(job, sound.STAGE, [VIDEO], Rung(stage="sound", batch=16))
    assert work is not None and [task.keys for task in work.batches[0]] == [second.keys]


def test_a_chunk_whose_sound_is_damaged_has_failed(tmp_path: Path) -> None:
    book = ledger(tmp_path)
    first, second = book.tasks([VIDEO])
    book.records.refused["sound"].publish([Record(key=first["sound"], meta={"kind": "sound"})])
    book.refresh()
    assert book.has_failed(first) and not book.has_failed(second)
    assert book.refusal(VIDEO) == {"stage": "sound", "kind": "sound", "start": 0.0}
    book.forget_failures([VIDEO])
    assert not book.has_failed(book.tasks([VIDEO])[0])


def test_sound_that_is_stored_needs_no_more_room(tmp_path: Path) -> None:
    book = ledger(tmp_path)
    sizes: Any = {"frame_bytes": 1000, "feature_bytes": 2000}
    tasks, media = book.tasks([VIDEO]), [VIDEO]
    for task in tasks:
        book["sound"].publish([Record(key=task["sound"], payload=bytes(25_000))])
    store = book.records.media.store
    job: Any = SimpleNamespace(store=store, ledger=book, pipeline=PIPELINE, media=media)
    sizes |= {"sound_bytes": 50_000, "heard_bytes": 300}
    expected = Estimate(seconds=60, chunks=2, frames=2, **sizes)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    stay = sum(path.stat().st_size for path in files if "sound" not in path.parts)
    needed = stay + 50_000 + 1000 + 2000 + 300 + 2 * SMALL_BYTES // 2
    assert StoreLimit(job, needed, [expected]).refusal() is None
    assert StoreLimit(job, needed - 1, [expected]).refusal() is not None
