"""The demo's clips: what they show, their captions, and how captions are scored."""

import random
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest

from penstock_demo import CLIPS
from penstock_demo.clips import main, write_clips
from penstock_demo.losses import is_readable, make_batch
from penstock_demo.render import render_frames
from penstock_demo.scoring import Truth, read_truths, score_captions
from penstock_demo.tracks import place
from penstock_demo.words import parse, score
from penstock_demo.world import FRAME_SIZES, Split, caption, sample_clip, sample_still


@pytest.mark.slow
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
    known = Truth(file="a.mp4", caption=red, trained=True)
    new = Truth(file="b.mp4", caption=star, trained=False)
    board = score_captions([known, new], {"a.mp4": red, "b.mp4": red})
    exact = {group.name: group.tallies["exact"].percent for group in board.groups}
    assert exact == {"all": 50.0, "trained": 100.0, "never trained": 0.0}
    assert [truth.file for truth, _ in board.misses] == ["b.mp4"]
    assert "never trained" in board.table()


def test_a_clip_without_a_caption_counts_as_missed() -> None:
    truth = Truth(file="a.mp4", caption="A small red circle on a dark background.", trained=True)
    board = score_captions([truth], {})
    assert board.groups[0].tallies["exact"].hits == 0
    assert board.misses == ((truth, None),)


@pytest.mark.parametrize("split", ["trained", "never"])
def test_splits_keep_the_pairs_apart(split: Split) -> None:
    rng = random.Random(1)
    assert all(sample_clip(rng, split).is_trained == (split == "trained") for _ in range(300))


def test_things_stay_within_the_frame_and_apart() -> None:
    rng = random.Random(3)
    for _ in range(300):
        spec = sample_clip(rng, "any")
        width, height = 64 * spec.aspect**0.5, 64 / spec.aspect**0.5
        for step in range(11):
            for track in spec.tracks:
                x, y, _ = place(track, step / 10)
                assert track.radius < x < width - track.radius
                assert track.radius < y < height - track.radius


@pytest.mark.parametrize("count", [6, 7, 11, 16])
def test_six_frames_and_more_show_every_action(count: int) -> None:
    rng = random.Random(4)
    times = [index / count for index in range(count)]
    assert all(is_readable(sample_clip(rng, "any"), times) for _ in range(300))


def test_two_frames_do_not_show_every_action_fails() -> None:
    rng = random.Random(4)
    assert not all(is_readable(sample_clip(rng, "any"), (0.0, 0.5)) for _ in range(100))


def test_frames_have_the_asked_size_and_show_what_moves() -> None:
    rng = random.Random(5)
    for height, width in FRAME_SIZES:
        spec = sample_clip(rng, "any")
        while not any(track.legs for track in spec.tracks):
            spec = sample_clip(rng, "any")
        frames = render_frames(spec, (0.0, 0.99), height, width)
        assert frames.shape == (2, height, width, 3) and frames.dtype == np.uint8
        assert (frames[0] != frames[1]).any()


def test_a_batch_has_one_shape_and_an_even_number_of_frames() -> None:
    rng = random.Random(6)
    noise = np.zeros(1 << 21, np.float32)
    counts = set()
    for _ in range(8):
        batch = make_batch(rng, noise)
        clips, times, height, width, _ = batch.frames.shape
        counts.add(times)
        assert times % 2 == 0
        assert len(batch.captions) == len(batch.backgrounds) == clips
        assert batch.classes.shape == (clips, 3, times // 2, height // 16, width // 16)
        assert batch.motion.shape[2:] == batch.classes.shape[2:]
    assert len(counts) > 2


CLIP = "A small red circle moves left slowly while a large blue star appears on a dark background."


def test_every_caption_parses_back_to_its_sentence() -> None:
    rng = random.Random(0)
    for _ in range(500):
        for spec in (sample_clip(rng, "any"), sample_still(rng, "any")):
            assert parse(caption(spec)) == spec.sentence


@pytest.mark.parametrize(
    "text", ["", "A red circle.", CLIP[:-1], CLIP + " Truly.", CLIP.replace("red", "beige")]
)
def test_text_outside_the_grammar_fails_to_parse(text: str) -> None:
    assert parse(text) is None


def test_score_is_told_attribute_by_attribute() -> None:
    text = CLIP.replace("circle", "square").replace("left", "right").replace("dark", "light")
    hits = score(text, CLIP)
    assert hits["size"] == hits["action"] == [True, True] and hits["shape"] == [False, True]
    assert hits["exact"] == hits["direction"] == hits["background"] == [False]
    assert hits["speed"] == hits["structure"] == [True]


def test_nonsense_scores_nothing_but_is_counted() -> None:
    hits = score("nonsense", CLIP)
    assert not any(any(found) for found in hits.values())
    assert len(hits["colour"]) == 2


def test_score_against_a_reference_outside_the_grammar_fails() -> None:
    with pytest.raises(ValueError, match="reference='nonsense'"):
        score(CLIP, "nonsense")
