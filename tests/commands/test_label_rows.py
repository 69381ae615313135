"""Which labels pictures are given, and which part of a picture speaks for them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from artifacts.errors import UsageError
from artifacts.texts.labels import Labelled, TextVectors, spans_of, write_coco
from flows.commands.label.files import LabelsWritten
from flows.commands.label.label_set import Label, LabelSet
from flows.commands.label.rows import (
    above_gap,
    cosines_of,
    label_rules,
    learned_threshold,
    pooled,
    read_examples,
)


def labels(*names: str, **settings: Any) -> LabelSet:
    made = (Label(name=name, prompts=(name,), **settings.get(name, {})) for name in names)
    return LabelSet(labels=tuple(made), templates=("{}",))


def texts(count: int, bias: float) -> TextVectors:
    vectors = np.eye(count, dtype=np.float32)
    return TextVectors(vectors=vectors, scale=10.0, bias=bias, cut=(), precision="fp32")


def test_a_model_with_a_bias_gives_what_is_more_likely_than_not() -> None:
    judge = label_rules(labels("a", "b"), texts(2, -5.0), None)
    scores = judge.scores(np.array([[0.6, 0.4], [0.4, 0.4]], np.float32))
    assert np.allclose(scores, 1 / (1 + np.exp(np.array([[-1, 1], [1, 1]]))), atol=1e-6)
    assert judge.passed(scores).tolist() == [[True, False], [False, False]]
    assert "more likely than not" in judge.why(0)


def test_a_model_without_one_gives_what_is_above_the_largest_gap() -> None:
    judge = label_rules(labels("a", "b", "c"), texts(3, 0.0), None)
    cosines = np.array([[0.30, 0.28, 0.10], [0.1, 0.3, 0.15]], np.float32)
    passed = [[True, True, False], [False, True, False]]
    assert judge.passed(judge.scores(cosines)).tolist() == passed


def test_the_gap_gives_at_least_one_and_at_most_six() -> None:
    assert 1 <= above_gap(np.linspace(1, 0, 40, dtype=np.float32)[None]).sum() <= 6
    late = np.concatenate([np.ones(20), np.zeros(20)]).astype(np.float32)[None]
    assert 1 <= above_gap(late).sum() <= 6


def test_one_label_of_a_model_without_a_bias_needs_a_threshold() -> None:
    with pytest.raises(UsageError, match="single label"):
        label_rules(labels("a"), texts(1, 0.0), None)
    judge = label_rules(labels("a"), texts(1, 0.0), 0.25)
    assert judge.passed(np.array([[0.26], [0.24]], np.float32)).tolist() == [[True], [False]]


def test_a_threshold_of_a_label_goes_before_that_of_all() -> None:
    judge = label_rules(labels("a", "b", a={"threshold": 0.5}), texts(2, 0.0), 0.1)
    assert judge.passed(np.array([[0.4, 0.4]], np.float32)).tolist() == [[False, True]]


def test_a_group_gives_its_first_and_no_other() -> None:
    grouped = {key: {"group": "place"} for key in ("in", "out")}
    judge = label_rules(labels("in", "out", "dog", **grouped), texts(3, -5.0), None)
    scores = judge.scores(np.array([[0.9, 0.8, 0.9]], np.float32))
    assert scores[0, :2].sum() == pytest.approx(1) and scores[0, 0] > scores[0, 1]
    assert judge.passed(scores).tolist() == [[True, False, True]]


def test_a_threshold_of_a_group_keeps_it_from_what_is_unsure() -> None:
    place = {"group": "place", "threshold": 0.9}
    judge = label_rules(labels("in", "out", **{"in": place, "out": place}), texts(2, 0.0), None)
    even = judge.scores(np.array([[0.3, 0.3], [0.9, 0.1]], np.float32))
    assert judge.passed(even).tolist() == [[False, False], [True, False]]


def test_a_parent_scores_as_its_best_child_and_a_child_needs_its_parent() -> None:
    family = {"cat": {"parent": "pet"}, "pet": {"parent": "animal"}}
    judge = label_rules(labels("animal", "cat", "pet", **family), texts(3, -5.0), None)
    scores = judge.scores(np.array([[0.1, 0.9, 0.2]], np.float32))
    assert scores[0].tolist() == pytest.approx([scores[0, 1]] * 3)
    assert judge.passed(scores).all()
    strict: Any = {"cat": {"parent": "pet"}, "pet": {"threshold": 0.99}}
    judge = label_rules(labels("cat", "pet", **strict), texts(2, -5.0), None)
    assert not judge.passed(judge.scores(np.array([[0.7, 0.9]], np.float32))).any()


def test_cosines_do_not_hang_on_the_length_of_a_vector() -> None:
    some = np.array([[3.0, 4.0], [0.0, 0.0]], np.float32)
    expected = np.array([[0.6, 0.8], [0.0, 0.0]])
    assert np.allclose(cosines_of(some, texts(2, 0.0)), expected)


def test_a_label_takes_its_best_tile_of_the_level_that_stands_out() -> None:
    draw = np.random.default_rng(0)
    levels = [0] + [2] * 6 + [4] * 12
    cosines = draw.normal(0, 0.01, (19, 30)).astype(np.float32)
    cosines[1:7, :10] += 0.3  # large tiles of background look like much
    cosines[11, 5] = 0.28
    found = pooled(cosines, levels)
    assert found.at[0, 5] == 11 and found.best[0].argmax() == 5
    assert np.array_equal(found.whole[0], cosines[0])


def test_how_far_a_level_stands_out_is_known_from_four_labels_on() -> None:
    cosines = np.array([[0.5, 0.55, 0.6, 0.65], [0.1, 0.1, 0.1, 0.4]], np.float32)
    assert pooled(cosines, [0, 2]).at.tolist() == [[1] * 4]
    assert pooled(cosines[:, 1:], [0, 2]).at.tolist() == [[0] * 3]


def test_spans_are_stretches_of_the_same_labels() -> None:
    frames = [(0.0, ["a"]), (1.0, ["a"]), (2.0, []), (3.0, ["b", "a"]), (4.0, ["a", "b"])]
    found = [(span.start, span.end, span.labels) for span in spans_of(frames, 5.5)]
    assert found == [(0, 2, ("a",)), (3, 5.5, ("a", "b"))]


def test_a_threshold_is_learned_where_examples_tell_a_label_apart() -> None:
    draw = np.random.default_rng(0)
    has = draw.random(200) < 0.3
    scores = np.where(has, 0.32, 0.20) + draw.normal(0, 0.02, 200)
    cut = learned_threshold(scores, has)
    assert cut is not None and 0.23 < cut < 0.29
    assert ((scores >= cut) == has).mean() > 0.97
    assert learned_threshold(scores, np.zeros(200, np.bool_)) is None
    assert learned_threshold(-scores, has) is None
    few = learned_threshold(np.array([0.1, 0.4]), np.array([False, True]))
    assert few is not None and 0.1 < few < 0.4


def test_what_is_learned_gives_way_to_what_is_given() -> None:
    judge = label_rules(labels("a", "b", "c", b={"threshold": 0.5}), texts(3, 0.0), 0.9)
    learned = {"a": 0.2, "b": 0.2}
    assert label_rules(labels("a", "b", "c"), texts(3, 0.0), 0.9, learned).thresholds == (0.9,) * 3
    found = label_rules(labels("a", "b", "c", b={"threshold": 0.5}), texts(3, -1.0), None, learned)
    assert found.rules == ("examples", "given", "bias") and found.thresholds == (0.2, 0.5, 0.5)
    assert "learned from examples" in found.why(0) and judge.rules == ("given",) * 3


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a,b\n", "no columns"),
        ("media_path,label\np.jpg,d\n", "the label 'd'"),
        ("media_path,label\nq.jpg,\np.jpg,a, b\n", r"line 3 .*: more cells than columns \('b'"),
        ('media_path,label\np.jpg,"a\n', "line 2 cannot be read: "),
        (None, "cannot"),
    ],
)
def test_wrong_examples_are_told_in_one_line(tmp_path: Path, text: str | None, line: str) -> None:
    path = tmp_path / "examples.csv"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UsageError, match=line):
        read_examples(str(path), ["a"])
    path.write_text("media_path,label\np.jpg,a\nq.jpg,\n")
    assert read_examples(str(path), ["a"]) == {"p.jpg": {"a"}, "q.jpg": set()}


def test_a_coco_file_has_a_box_for_each_label_given(tmp_path: Path) -> None:
    scored: Any = [
        {"label": "b", "passed": True, "box": [10, 20, 30, 60], "score": 0.9},
        {"label": "a", "passed": False, "box": None, "score": 0.1},
    ]
    rest: Any = {"top": "", "model": "", "precision": {}, "features": "", "labels_digest": ""}
    row = Labelled(media_path="ü.jpg", source="s", time=None, labels=tuple(scored), **rest)
    none = Labelled(media_path="q.jpg", source="s", time=None, labels=(), **rest)
    write_coco(tmp_path / "c.json", ["a", "b"], [(row, 100, 200), (none, 5, 6)])
    found = json.loads((tmp_path / "c.json").read_text())
    assert [c["name"] for c in found["categories"]] == ["a", "b"]
    images = [(image["file_name"], image["height"], image["width"]) for image in found["images"]]
    assert images == [("ü.jpg", 100, 200), ("q.jpg", 5, 6)]
    (only,) = found["annotations"]
    assert (only["image_id"], only["category_id"]) == (1, 2)
    assert only["bbox"] == [10, 20, 20, 40] and only["area"] == 800
    write_coco(tmp_path / "empty.json", [], [])
    assert json.loads((tmp_path / "empty.json").read_text())["images"] == []


def test_images_and_frames_of_videos_are_counted_as_what_they_are() -> None:
    run = LabelsWritten(out=Path("l"), files=3, pictures=129, labelled=14, given=15)
    assert run.line() == "14 images or frames of 129 given 15 labels in l/labels.jsonl"
