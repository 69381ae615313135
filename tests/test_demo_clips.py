import subprocess
import sys
from pathlib import Path

import av
import pytest

from penstock_demo import CLIPS
from penstock_demo.clips import main, write_clips
from penstock_demo.scoring import Truth, read_truths, score_captions


@pytest.mark.parametrize(
    ("module", "heavy"),
    [("penstock_demo", {"torch", "numpy", "av"})]
    + [(f"penstock_demo.{name}", {"torch"}) for name in ("clips", "scoring", "world", "render")],
)
def test_importing_the_demo_is_light_and_clips_and_scores_need_no_torch(
    module: str, heavy: set[str]
) -> None:
    code = f"import {module}, sys; sys.exit(not {heavy}.isdisjoint(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_written_clips_are_h264_and_match_their_truth(tmp_path: Path) -> None:
    truths = write_clips(tmp_path, 8, seed=3)
    assert read_truths(tmp_path / "truth.jsonl") == truths
    assert sum(not truth.trained for truth in truths) == 2
    for truth in truths:
        with av.open(str(tmp_path / truth.file)) as container:
            stream = container.streams.video[0]
            assert stream.codec_context.name == "h264"
            rate = float(stream.average_rate or 0)
            assert 8 <= rate <= 30
            frames = sum(1 for _ in container.decode(stream))
        assert 2.9 <= frames / rate <= 8.1


def test_the_same_seed_writes_the_same_truths_and_another_does_not(tmp_path: Path) -> None:
    first = write_clips(tmp_path / "a", 4, seed=5)
    assert write_clips(tmp_path / "b", 4, seed=5) == first
    main([str(tmp_path / "c"), "--count", "4", "--seed", "6"])
    assert read_truths(tmp_path / "c" / "truth.jsonl") != first
    assert len(list((tmp_path / "c").glob("*.mp4"))) == 4


def test_the_shipped_clips_are_a_dozen_and_small() -> None:
    truths = read_truths(CLIPS / "truth.jsonl")
    assert len(truths) == 12
    assert {truth.file for truth in truths} == {path.name for path in CLIPS.glob("*.mp4")}
    assert {truth.trained for truth in truths} == {True, False}
    assert sum(path.stat().st_size for path in CLIPS.iterdir()) < 1_000_000


def test_a_scoreboard_keeps_never_trained_pairs_apart() -> None:
    red = "A small red circle appears on a dark background."
    star = "A small red star appears on a dark background."
    truths = [
        Truth(file="a.mp4", caption=red, trained=True),
        Truth(file="b.mp4", caption=star, trained=False),
    ]
    board = score_captions(truths, {"a.mp4": red, "b.mp4": red})
    exact = {group.name: group.tallies["exact"].percent for group in board.groups}
    assert exact == {"all": 50.0, "trained": 100.0, "never trained": 0.0}
    assert [truth.file for truth, _ in board.misses] == ["b.mp4"]
    assert "never trained" in board.table()


def test_a_clip_without_a_caption_counts_as_missed() -> None:
    truth = Truth(file="a.mp4", caption="A small red circle on a dark background.", trained=True)
    board = score_captions([truth], {})
    assert board.groups[0].tallies["exact"].hits == 0
    assert board.misses == ((truth, None),)
