"""The encode stage publishes what is missing, and the same bytes whoever is missing."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from artifacts.errors import CannotFit, EnvironmentFault, UsageError
from artifacts.packs import Record
from stages.encode import run as stage
from stages.encode.run import read_member
from stages.models.encoding.chunks import read_clip
from stages.models.loading import ModelJob
from stages.models.processors.prepare import Clip
from tests.support.clips import clips
from tests.support.families import checkpoint
from tests.support.waves import FEATURES, FRAMES, Wave, keys_told

DEMO = Path(__file__).parent.parent / "penstock_demo" / "checkpoint"


def wave(tmp_path: Path, name: str = "store") -> Wave:
    made = clips("video", 5)
    return Wave(tmp_path / name, checkpoint("qwen2_5_vl"), [made[:3], made[3:]])


def payloads(made: Wave) -> dict[str, bytes]:
    record_set = made.record_set("features", FEATURES)
    return {key: bytes(record_set.read(key).payload) for key in sorted(record_set.keys())}


def test_every_chunk_gets_a_record_and_is_told_once(tmp_path: Path) -> None:
    made = wave(tmp_path)
    told = made.encode()
    names = [f"features-{n}" for n in range(5)]
    assert keys_told(told) == names
    assert list(payloads(made)) == names
    assert told[0] == {"event": "total", "items": 5}
    notes = [event for event in told if event["event"] == "note"]
    assert notes[0]["attention"] == "sdpa"


def test_a_wave_that_is_done_loads_no_model(tmp_path: Path) -> None:
    made = wave(tmp_path)
    made.encode()
    made.model = str(tmp_path / "gone")
    assert made.encode() == [{"event": "total", "items": 0}]


def test_a_resumed_batch_publishes_only_what_is_missing_with_the_same_bytes(tmp_path: Path) -> None:
    whole = wave(tmp_path)
    whole.encode()
    before = payloads(whole)
    resumed = wave(tmp_path, "resumed")
    record_set = resumed.record_set("features", FEATURES)
    kept = whole.record_set("features", FEATURES)
    record_set.publish([kept.read("features-1")])
    told = resumed.encode()
    assert keys_told(told) == ["features-0", "features-2", "features-3", "features-4"]
    assert payloads(resumed) == before


def test_frames_that_are_gone_fail(tmp_path: Path) -> None:
    made = wave(tmp_path)
    made.record_set("frames", FRAMES).drop([f"frames-{n}" for n in range(5)])
    with pytest.raises(EnvironmentFault, match="no longer in the store"):
        made.encode()


@pytest.mark.parametrize("dtype", ["float33", "nn", ""])
def test_an_unknown_precision_fails(dtype: str) -> None:
    with pytest.raises(UsageError, match="no precision"):
        ModelJob(model="anything", dtype=dtype)


def test_half_precision_features_are_stored_in_half_precision(tmp_path: Path) -> None:
    made = wave(tmp_path)
    made.encode()
    full = len(payloads(made)["features-0"])
    small = wave(tmp_path, "half")
    job = small._job

    def in_bfloat16(**values: Any) -> dict[str, Any]:
        return {**job(**values), "dtype": "bfloat16"}

    small._job = in_bfloat16  # type: ignore[method-assign]
    small.encode()
    assert len(payloads(small)["features-0"]) < full * 0.6


def picture(height: int, width: int) -> Clip:
    frames = np.full((1, height, width, 3), 128, np.uint8)
    return Clip(frames=frames, times=(0.0,), seconds=0.0, kind="image")


def test_frames_that_the_processor_refuses_fail_alone(tmp_path: Path) -> None:
    batches = [[picture(64, 64), picture(900, 3), picture(64, 64)], [picture(3, 900)]]
    made = Wave(tmp_path / "store", DEMO, batches)
    told = made.encode()
    assert keys_told(told) == ["features-0", "features-2"]
    failures = {e.pop("media"): e for e in told if e.pop("event") == "failure"}
    record_set = made.record_set("failures", FEATURES)
    assert set(failures) == record_set.keys() == {"features-1", "features-3"}
    for key, failure in failures.items():
        assert failure == record_set.meta(key)
        assert failure["kind"] == "refused"
        assert "refuses these frames: absolute aspect ratio must be" in failure["message"]
        assert "\n" not in failure["message"] and failure["hint"]


def test_a_row_beside_a_refused_one_has_the_bytes_it_has_without_it(tmp_path: Path) -> None:
    rows = [picture(64, 64), picture(900, 3), picture(64, 96)]
    made = Wave(tmp_path / "store", DEMO, [rows])
    made.encode()
    alone = Wave(tmp_path / "alone", DEMO, [[rows[0], rows[2]]])
    alone.encode()
    assert list(payloads(made).values()) == list(payloads(alone).values())


def test_a_clip_of_one_frame_is_captioned_by_a_model_that_needs_two(tmp_path: Path) -> None:
    batch = [*clips("video", 1, frames=1), *clips("video", 1)]
    made = Wave(tmp_path / "store", checkpoint("qwen3_vl"), [batch])
    assert keys_told(made.encode()) == ["features-0", "features-1"]
    assert made.record_set("failures", FEATURES).keys() == set()
    made.decode(("Describe.",))
    assert all(caption["caption"] for caption in made.captions())


def test_a_frame_from_before_its_chunk_is_told_to_be_at_its_start(tmp_path: Path) -> None:
    made = wave(tmp_path)
    record_set = made.record_set("frames", FRAMES)
    record = record_set.read("frames-0")
    early = {**record.meta, "times": [record.meta["start"] - 1.5, *record.meta["times"][1:]]}
    record_set.publish([Record(key="early", meta=early, payload=record.payload)])
    times = read_clip(record_set, {"frames": "early", "kind": "video"}).times
    assert times[0] == 0.0
    assert times == tuple(sorted(times))


def short_of_memory(monkeypatch: pytest.MonkeyPatch, *keys: str) -> None:
    """Let the chunks of these features find no memory while they are read."""

    def read(record_set: Any, processor: Any, member: dict[str, Any], count: int = 0) -> Any:
        if member["key"] in keys:
            raise MemoryError("Unable to allocate 303. MiB for an array")
        return read_member(record_set, processor, member, count)

    monkeypatch.setattr(stage, "read_member", read)


def test_a_chunk_that_memory_cannot_read_is_told_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = wave(tmp_path)
    short_of_memory(monkeypatch, "features-1", "features-3", "features-4")
    told = made.encode()
    assert keys_told(told) == ["features-0", "features-2"]
    large = [event["key"] for event in told if event["event"] == "too_large"]
    assert large == ["features-1", "features-3", "features-4"]


@pytest.mark.slow
def test_where_memory_reads_no_chunk_the_stage_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = wave(tmp_path)
    short_of_memory(monkeypatch, *(f"features-{n}" for n in range(5)))
    with pytest.raises(CannotFit):
        made.encode()
