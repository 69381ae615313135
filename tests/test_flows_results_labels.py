"""Which labels pictures are given: by a bias, by the largest gap, by thresholds, groups and
parents; and which part of a picture speaks for them."""

from typing import Any

import numpy as np
import pytest

from artifacts.errors import UsageError
from artifacts.labels import Labelled, spans_of
from artifacts.text_vectors import TextVectors
from flows.job.labels import Label, LabelSet
from flows.results.labels.judging import above_gap, cosines_of, judge_of
from flows.results.labels.pooling import pooled


def labels(*names: str, **settings: Any) -> LabelSet:
    made = (Label(name=name, prompts=(name,), **settings.get(name, {})) for name in names)
    return LabelSet(labels=tuple(made), templates=("{}",))


def texts(count: int, bias: float) -> TextVectors:
    vectors = np.eye(count, dtype=np.float32)
    return TextVectors(vectors=vectors, scale=10.0, bias=bias, cut=(), precision="fp32")


def test_a_model_with_a_bias_gives_what_is_more_likely_than_not() -> None:
    judge = judge_of(labels("a", "b"), texts(2, -5.0), None)
    scores = judge.scores(np.array([[0.6, 0.4], [0.4, 0.4]], np.float32))
    assert np.allclose(scores, 1 / (1 + np.exp(np.array([[-1, 1], [1, 1]]))), atol=1e-6)
    assert judge.passed(scores).tolist() == [[True, False], [False, False]]
    assert "more likely than not" in judge.why(0)


def test_a_model_without_one_gives_what_is_above_the_largest_gap() -> None:
    judge = judge_of(labels("a", "b", "c"), texts(3, 0.0), None)
    cosines = np.array([[0.30, 0.28, 0.10], [0.1, 0.3, 0.15]], np.float32)
    assert judge.passed(judge.scores(cosines)).tolist() == [
        [True, True, False],
        [False, True, False],
    ]


def test_the_gap_gives_at_least_one_and_at_most_six() -> None:
    even = np.linspace(1, 0, 40, dtype=np.float32)[None]
    assert 1 <= above_gap(even).sum() <= 6
    late = np.concatenate([np.ones(20), np.zeros(20)]).astype(np.float32)[None]
    assert 1 <= above_gap(late).sum() <= 6


def test_one_label_of_a_model_without_a_bias_needs_a_threshold() -> None:
    with pytest.raises(UsageError, match="alone"):
        judge_of(labels("a"), texts(1, 0.0), None)
    judge = judge_of(labels("a"), texts(1, 0.0), 0.25)
    assert judge.passed(np.array([[0.26], [0.24]], np.float32)).tolist() == [[True], [False]]


def test_a_threshold_of_a_label_goes_before_that_of_all() -> None:
    judge = judge_of(labels("a", "b", a={"threshold": 0.5}), texts(2, 0.0), 0.1)
    assert judge.passed(np.array([[0.4, 0.4]], np.float32)).tolist() == [[False, True]]


def test_a_group_gives_its_first_and_no_other() -> None:
    both = {"group": "place"}
    judge = judge_of(labels("in", "out", "dog", **{"in": both, "out": both}), texts(3, -5.0), None)
    scores = judge.scores(np.array([[0.9, 0.8, 0.9]], np.float32))
    assert scores[0, :2].sum() == pytest.approx(1) and scores[0, 0] > scores[0, 1]
    assert judge.passed(scores).tolist() == [[True, False, True]]


def test_a_threshold_of_a_group_keeps_it_from_what_is_unsure() -> None:
    place = {"group": "place", "threshold": 0.9}
    judge = judge_of(labels("in", "out", **{"in": place, "out": place}), texts(2, 0.0), None)
    even = judge.scores(np.array([[0.3, 0.3], [0.9, 0.1]], np.float32))
    assert judge.passed(even).tolist() == [[False, False], [True, False]]


def test_a_parent_scores_as_its_best_child_and_a_child_needs_its_parent() -> None:
    family = {"cat": {"parent": "pet"}, "pet": {"parent": "animal"}}
    judge = judge_of(labels("animal", "cat", "pet", **family), texts(3, -5.0), None)
    scores = judge.scores(np.array([[0.1, 0.9, 0.2]], np.float32))
    assert scores[0].tolist() == pytest.approx([scores[0, 1]] * 3)
    assert judge.passed(scores).all()
    strict: Any = {"cat": {"parent": "pet"}, "pet": {"threshold": 0.99}}
    judge = judge_of(labels("cat", "pet", **strict), texts(2, -5.0), None)
    assert not judge.passed(judge.scores(np.array([[0.7, 0.9]], np.float32))).any()


def test_cosines_do_not_hang_on_the_length_of_a_vector() -> None:
    some = np.array([[3.0, 4.0], [0.0, 0.0]], np.float32)
    wanted = np.array([[0.6, 0.8], [0.0, 0.0]])
    assert np.allclose(cosines_of(some, texts(2, 0.0)), wanted)


def test_a_label_takes_its_best_tile_of_the_level_that_stands_out() -> None:
    draw = np.random.default_rng(0)
    levels = [0] + [2] * 6 + [4] * 12
    cosines = draw.normal(0, 0.01, (19, 30)).astype(np.float32)
    cosines[1:7, :10] += 0.3  # large tiles of background look like much
    cosines[11, 5] = 0.28
    found = pooled(cosines, levels)
    assert found.at[0, 5] == 11 and found.best[0].argmax() == 5
    assert np.array_equal(found.whole[0], cosines[0])


def test_spans_are_stretches_of_the_same_labels() -> None:
    def row(time: float, *given: str) -> Labelled:
        scored: Any = [{"label": name, "passed": True} for name in given]
        rest: Any = {"top": "", "model": "", "precision": {}, "features": "", "labels_digest": ""}
        return Labelled(media_path="v", source="v", time=time, labels=tuple(scored), **rest)

    rows = [row(0, "a"), row(1, "a"), row(2), row(3, "b", "a"), row(4, "a", "b")]
    found = [(span.start, span.end, span.labels) for span in spans_of(rows, 5.5)]
    assert found == [(0, 2, ("a",)), (3, 5.5, ("a", "b"))]
