"""The encode stage publishes what is missing, and the same bytes whoever is missing, whatever
passes the vision half with an input; a way that does not hold is found out, and remembered."""

import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers.modeling_outputs import BaseModelOutputWithPooling

from artifacts.errors import CannotFit, EnvironmentFault, HalfChecked, UsageError
from artifacts.records.packs import Record, RecordSet
from artifacts.records.store import open_store
from artifacts.records.tensors import pack_tree
from penstock_demo import CHECKPOINT
from stages.encode import run as stage
from stages.encode import shown_frames
from stages.encode.run import read_item
from stages.models.encoding import FIXED_ROWS, EncodeItem
from stages.models.encoding import run as encoding
from stages.models.encoding.batch import PassChecks, PassRow, encode_passes
from stages.models.encoding.run import _is_finite, read_clip
from stages.models.half_job import HalfJob
from stages.models.halves.records import FeatureRecord, RowCount
from stages.models.loading import ModelJob
from stages.models.processors.blank_clips import Clip
from stages.models.processors.side_inputs import Prepared
from stages.process.checks import Verdicts
from stages.process.events import NOT_ANSWERED
from tests.support.clips import clips
from tests.support.families import checkpoint
from tests.support.tiny_families.in_slots import judged_in_passes, prepared_rows
from tests.support.waves import (
    FEATURES,
    FRAMES,
    Wave,
    answers_to,
    encoded_wave,
    keys_told,
    returned,
    work_sent,
)


def wave(tmp_path: Path, name: str = "store", **settings: Any) -> Wave:
    made = clips("video", 5)
    return Wave(tmp_path / name, checkpoint("qwen2_5_vl"), [made[:3], made[3:]], **settings)


def payloads(made: Wave) -> dict[str, bytes]:
    record_set = made.record_set("features", FEATURES)
    return {key: bytes(record_set.read(key).payload) for key in sorted(record_set.keys())}


def test_every_chunk_gets_a_record_once_and_who_goes_on_makes_the_same_bytes(
    tmp_path: Path,
) -> None:
    made = wave(tmp_path)
    message = made.encode()
    names = [f"features-{n}" for n in range(5)]
    whole = payloads(made)
    assert keys_told(message) == list(whole) == names
    assert message[0] == {"event": "Total", "items": 5, "earlier": 0}
    notes = [event for event in message if event["event"] == "StageNotes"]
    assert notes[0]["attention"] == "sdpa"

    resumed = wave(tmp_path, "resumed")
    kept = made.record_set("features", FEATURES).read("features-1")
    resumed.record_set("features", FEATURES).publish([kept])
    assert keys_told(resumed.encode()) == ["features-0", "features-2", "features-3", "features-4"]
    assert payloads(resumed) == whole

    made.model = str(tmp_path / "gone")
    assert made.encode() == [{"event": "Total", "items": 0, "earlier": 0}]

    small = wave(tmp_path, "half", dtype="bfloat16")
    small.encode()
    assert len(payloads(small)["features-0"]) < len(whole["features-0"]) * 0.6


def test_frames_that_are_gone_fail(tmp_path: Path) -> None:
    made = wave(tmp_path)
    made.record_set("frames", FRAMES).drop([f"frames-{n}" for n in range(5)])
    with pytest.raises(EnvironmentFault, match="no longer in the store"):
        made.encode()


@pytest.mark.parametrize("dtype", ["float33", "nn", ""])
def test_an_unknown_precision_fails(dtype: str) -> None:
    with pytest.raises(UsageError, match="no precision"):
        ModelJob(model="anything", dtype=dtype)


def picture(height: int, width: int) -> Clip:
    frames = np.full((1, height, width, 3), 128, np.uint8)
    return Clip(frames=frames, times=(0.0,), seconds=0.0, kind="image")


def test_frames_that_the_processor_refuses_fail_alone(tmp_path: Path) -> None:
    rows = [picture(64, 64), picture(900, 3), picture(64, 96)]
    made = Wave(tmp_path / "store", CHECKPOINT, [rows, [picture(3, 900)]])
    message = made.encode()
    assert keys_told(message) == ["features-0", "features-2"]
    failures = {e.pop("media"): e for e in message if e.pop("event") == "Failed"}
    record_set = made.record_set("failures", FEATURES)
    assert set(failures) == record_set.keys() == {"features-1", "features-3"}
    for key, failure in failures.items():
        assert failure == record_set.meta(key)
        assert failure["kind"] == "refused"
        assert "refuses these frames: absolute aspect ratio must be" in failure["message"]
        assert "\n" not in failure["message"] and failure["hint"]
    without = encoded_wave(tmp_path / "alone", CHECKPOINT, [rows[0], rows[2]])
    assert list(payloads(made).values()) == list(payloads(without).values())


def test_a_clip_of_one_frame_is_captioned_by_a_model_that_needs_two(tmp_path: Path) -> None:
    batch = [*clips("video", 1, frames=1), *clips("video", 1)]
    made = Wave(tmp_path / "store", checkpoint("qwen3_vl"), [batch])
    assert keys_told(made.encode()) == ["features-0", "features-1"]
    assert made.record_set("failures", FEATURES).keys() == set()
    made.decode(("Describe.",))
    assert all(caption["caption"] for caption in made.captions())


def test_the_times_of_frames_shown_twice_stay_in_a_short_clip() -> None:
    assert shown_frames([1.0], 0.5, 2) == ([0, 0], (1.0, 1.25))


def test_a_frame_from_before_its_chunk_is_told_to_be_at_its_start(tmp_path: Path) -> None:
    made = wave(tmp_path)
    record_set = made.record_set("frames", FRAMES)
    record = record_set.read("frames-0")
    early = {**record.meta, "times": [record.meta["start"] - 1.5, *record.meta["times"][1:]]}
    record_set.publish([Record(key="early", meta=early, payload=record.payload)])
    times = read_clip(record_set, EncodeItem("", "early", "video")).times
    assert times[0] == 0.0
    assert times == tuple(sorted(times))


@pytest.mark.parametrize("large", [[1, 3, 4], pytest.param([*range(5)], marks=pytest.mark.slow)])
def test_a_chunk_that_memory_cannot_read_is_told_and_the_others_go_on(
    large: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, names = wave(tmp_path), [f"features-{n}" for n in large]

    def read(record_set: Any, processor: Any, member: EncodeItem, count: int = 0) -> Any:
        if member.key in names:
            raise MemoryError("Unable to allocate 303. MiB for an array")
        return read_item(record_set, processor, member, count)

    monkeypatch.setattr(stage, "read_item", read)
    if len(large) == 5:
        with pytest.raises(CannotFit):
            made.encode()
        return
    message = made.encode()
    assert keys_told(message) == ["features-0", "features-2"]
    assert [event["key"] for event in message if event["event"] == "TooLarge"] == names


def record(value: float, dtype: torch.dtype) -> FeatureRecord:
    pooled = torch.ones(2, 3, dtype=dtype)
    pooled[1, 1] = value
    features = {"image": BaseModelOutputWithPooling(pooler_output=pooled)}
    row: Any = {"channel": "images", "side": {}, "count": RowCount(tokens=2, media=1)}
    return FeatureRecord(features=features, rules={}, needs=(), replacements=(), **row)


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_features_that_are_not_finite_are_found_in_every_type(
    value: float, dtype: torch.dtype
) -> None:
    assert not _is_finite(record(value, dtype))
    assert _is_finite(record(torch.finfo(dtype).max, dtype))


Change = Callable[[Any, int], Any]
"""Features of the images of a pass, and the number of passes before it → other features."""


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Compute in one thread: several divide the rows of small products unevenly."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def checks(folder: Path) -> PassChecks:
    return PassChecks(Verdicts(open_store(str(folder)), "cpu"), HalfJob(model=""))


def rows_in(rows: Sequence[Prepared], count: int) -> list[PassRow]:
    return [PassRow(prepared=row, rows=count) for row in rows]


def bytes_of(made: Sequence[FeatureRecord]) -> list[bytes]:
    return [pack_tree(each.to_tree())[1] for each in made]


def half_and_rows(change: Change | None = None) -> tuple[Any, list[Prepared], list[int]]:
    """A tiny half whose features are changed, images for it, and the rows of each of its passes."""
    model, rows = prepared_rows("llava", torch.float32)
    encode, passes = model.model.get_image_features, list[int]()

    @functools.wraps(encode)
    def changed(*args: Any, **kwargs: Any) -> Any:
        found = encode(*args, **kwargs)
        pooled = [*found.pooler_output]
        passes.append(len(pooled))
        if change is not None:
            found.pooler_output = [
                value + change(at, len(passes)) for at, value in enumerate(pooled)
            ]
        return found

    model.model.get_image_features = changed
    return model, rows, passes


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("variant", ["llava", "qwen2_5_vl", "qwen2_5_vl:video"])
def test_both_ways_hold_with_these_families(
    variant: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    assert judged_in_passes(variant, tmp_path, dtype) == ["alone", "fixed"]


@pytest.mark.parametrize("variant", ["molmo2", "minicpmv4_6"])
def test_a_family_that_does_not_separate_its_rows_is_encoded_alone(
    variant: str, tmp_path: Path
) -> None:
    assert judged_in_passes(variant, tmp_path) == ["alone"]


@pytest.mark.parametrize("count", [1, FIXED_ROWS])
def test_order_and_company_have_no_part_in_the_bytes(count: int, tmp_path: Path) -> None:
    model, rows, passes = half_and_rows()
    known = checks(tmp_path)
    whole = bytes_of(encode_passes(model, rows_in(rows, count), known))
    tried = len(passes)
    others = bytes_of(encode_passes(model, rows_in(rows[::-1], count), known))[::-1]
    single = [bytes_of(encode_passes(model, rows_in([row], count), known))[0] for row in rows]
    assert whole == others == single
    assert set(passes) == {count}
    # The trial takes two passes, once.
    of_five = 5 if count == 1 else 1
    assert (tried, len(passes)) == (2 + of_five, 2 + 2 * of_five + 5)


def test_a_half_that_looks_at_the_place_takes_each_input_alone(tmp_path: Path) -> None:
    model, rows, passes = half_and_rows(lambda place, _: 1e-3 * place)
    alone = bytes_of(encode_passes(model, rows_in(rows, 1), checks(tmp_path / "other")))
    passes.clear()
    made = encode_passes(model, rows_in(rows, FIXED_ROWS), known := checks(tmp_path))
    assert bytes_of(made) == alone
    assert passes == [FIXED_ROWS] * 2 + [1] * 2 + [1] * len(rows)
    assert known.result(rows_in(rows, FIXED_ROWS)[0]) is False
    passes.clear()
    again = encode_passes(model, rows_in(rows, FIXED_ROWS), checks(tmp_path))
    assert bytes_of(again) == alone and passes == [1] * len(rows)


def test_a_half_that_computes_one_input_twice_differently_is_planned_again(tmp_path: Path) -> None:
    model, rows, _ = half_and_rows(lambda place, number: 1e-3 * number)
    with pytest.raises(HalfChecked, match="one input twice with different results"):
        encode_passes(model, rows_in(rows, FIXED_ROWS), known := checks(tmp_path))
    assert [known.result(rows_in(rows, count)[0]) for count in (FIXED_ROWS, 1)] == [False, False]


def test_a_size_class_is_tried_when_it_appears(tmp_path: Path) -> None:
    model, rows = prepared_rows("qwen2_5_vl", torch.float32)
    _, videos = prepared_rows("qwen2_5_vl:video", torch.float32)
    known = checks(tmp_path)
    encode_passes(model, rows_in(rows, FIXED_ROWS), known)
    first, later = rows_in(rows, FIXED_ROWS)[0], rows_in(videos, FIXED_ROWS)[0]
    assert known.about(first) != known.about(later)
    assert [known.result(row) for row in (first, later)] == [True, None]
    encode_passes(model, rows_in([*videos, *rows], FIXED_ROWS), known)
    assert [known.result(row) for row in (first, later)] == [True, True]


def lie_alone(made: Wave) -> None:
    """Let the frames of each chunk lie in a pack of their own, as those of clients do."""
    frames = made.record_set("frames", FRAMES)
    records = [frames.read(key) for key in sorted(frames.keys())]
    frames.drop(record.key for record in records)
    for record in records:
        frames.publish([record])


def test_files_of_several_clients_are_encoded_in_one_batch(tmp_path: Path) -> None:
    made, other = wave(tmp_path), wave(tmp_path, "other")
    lie_alone(made)
    other.encode()
    job = made.to_encode() | {"for_clients": True}
    items = [EncodeItem(*item) for batch in job["batches"] for item in batch]
    told = answers_to(stage.run, job, tmp_path / "pipe", items)
    assert sorted(keys_told(told)) == [item.key for item in items]
    assert payloads(made) == payloads(other)


def test_a_full_disk_ends_a_stage_that_waits_for_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = wave(tmp_path)
    monkeypatch.setattr(RecordSet, "publish", refusing)
    with pytest.raises(EnvironmentFault, match="full"):
        work_sent(stage.run, made.to_encode(), tmp_path / "pipe")


def test_chunks_that_another_run_encodes_first_have_an_answer_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, publish = wave(tmp_path), RecordSet.publish
    monkeypatch.setattr(RecordSet, "publish", lambda *given: publish(*given)[:1])
    job = made.to_encode()
    items = [EncodeItem(*item) for batch in job["batches"] for item in batch]
    told = answers_to(stage.run, job, tmp_path / "pipe", items)
    assert sorted([*keys_told(told), *returned(told)]) == [item.key for item in items]
    assert returned(told)


def refusing(*_: Any) -> list[str]:
    raise EnvironmentFault("the disk is full", hint="Make room")


@pytest.mark.parametrize("for_clients", [False, True])
def test_a_chunk_that_the_stage_forgets_has_an_answer_while_the_stage_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, for_clients: bool
) -> None:
    """Forgotten by the code itself: no error, no record."""
    made = wave(tmp_path)
    if for_clients:
        lie_alone(made)
    encoded = encoding._encoded

    def forgetful(*given: Any) -> list[list[encoding.Encoded]]:
        return [of_batch[1:] for of_batch in encoded(*given)]

    monkeypatch.setattr(encoding, "_encoded", forgetful)
    job = made.to_encode() | {"for_clients": for_clients}
    items = [EncodeItem(*item) for item in job["batches"][0]]
    told = answers_to(stage.run, job, tmp_path / "pipe", items)
    assert sorted(keys_told(told)) == [item.key for item in items[1:]]
    if for_clients:
        (failed,) = (event for event in told if event["event"] == "Failed")
        assert (failed["media"], failed["kind"]) == (items[0].key, NOT_ANSWERED)
    else:
        (returned,) = (event for event in told if event["event"] == "Returned")
        assert returned["keys"] == [items[0].key]
