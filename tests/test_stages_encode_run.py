"""The encode stage publishes what is missing, and the same bytes whoever is missing."""

from pathlib import Path
from typing import Any

import pytest

from artifacts.errors import EnvironmentFault, UsageError
from stages.models.loading import ModelJob
from tests.clips import clips
from tests.families import checkpoint
from tests.waves import FEATURES, FRAMES, Wave, keys_told


def wave(tmp_path: Path, name: str = "store") -> Wave:
    made = clips("video", 5)
    return Wave(tmp_path / name, checkpoint("qwen2_5_vl"), [made[:3], made[3:]])


def payloads(made: Wave) -> dict[str, bytes]:
    shelf = made.shelf("features", FEATURES)
    return {key: bytes(shelf.read(key).payload) for key in sorted(shelf.keys())}


def test_every_chunk_gets_a_record_and_is_told_once(tmp_path: Path) -> None:
    made = wave(tmp_path)
    told = made.encode()
    names = [f"features-{n}" for n in range(5)]
    assert keys_told(told) == names
    assert list(payloads(made)) == names
    assert told[0] == {"event": "total", "items": 5}
    items = [event for event in told if event["event"] == "item"]
    assert [event["media_seconds"] for event in items] == [2.0] * 5
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
    shelf = resumed.shelf("features", FEATURES)
    kept = whole.shelf("features", FEATURES)
    shelf.publish([kept.read("features-1")])
    told = resumed.encode()
    assert keys_told(told) == ["features-0", "features-2", "features-3", "features-4"]
    assert payloads(resumed) == before


def test_frames_that_are_gone_fail(tmp_path: Path) -> None:
    made = wave(tmp_path)
    made.shelf("frames", FRAMES).drop([f"frames-{n}" for n in range(5)])
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
