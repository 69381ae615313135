"""The demo's dual encoder through the whole program: `--model demo` where vectors are made."""

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.labels import LABELS, f1, holds, small
from flows.checkpoint.models import find_checkpoint
from flows.cli.main import main
from flows.options.commands import CaptionConfig
from flows.pipelines import CAPTION, EMBED, LABEL, REBUILD, Pipeline
from penstock_demo import CHECKPOINT, DUAL_CHECKPOINT
from penstock_demo.dual.pictures import ImageTruth, write_images


def test_the_demo_model_is_the_one_that_the_pipeline_is_for() -> None:
    def found(*pipelines: Pipeline) -> Path:
        return find_checkpoint(CaptionConfig(sources=(), model="demo"), None, *pipelines).folder

    assert found() == found(CAPTION) == found(REBUILD, EMBED) == CHECKPOINT
    assert found(EMBED) == found(LABEL) == DUAL_CHECKPOINT


@pytest.mark.slow
def test_real_files_get_their_labels_from_the_demo_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    truths = write_images(tmp_path / "pictures", "several", 12, 5)
    asked = ["--model", "demo", "--labels", ",".join(LABELS), "--out", str(tmp_path / "out")]
    assert main(["label", str(tmp_path / "pictures"), *asked]) == 0
    lines = (tmp_path / "out" / "labels.jsonl").read_text(encoding="utf-8").splitlines()
    rows = {row["media_path"]: row for row in map(json.loads, lines)}
    given = {
        name: {each["label"] for each in row["labels"] if each["passed"]}
        for name, row in rows.items()
    }
    shared = sum(len(given[truth.file] & set(truth.labels)) for truth in truths)
    every = sum(len(given[truth.file]) + len(set(truth.labels)) for truth in truths)
    assert 2 * shared / every >= 0.6
    assert {each["why"] for row in rows.values() for each in row["labels"]} == {
        "more likely than not (0.5)"
    }
    assert "12" in capsys.readouterr().out


@pytest.mark.slow
def test_tiles_find_a_small_thing_in_a_large_picture(tmp_path: Path) -> None:
    missed = [str(f) for f in small(tmp_path, 10, 3) if f.goal and f.value < f.goal]
    assert missed == []


def test_the_score_compares_with_the_truth() -> None:
    right = np.array([[True, False], [False, True]])
    assert f1(right, right) == 100 and f1(~right, right) == 0
    truth = ImageTruth(file="a", labels=["red star"], places=[(100.0, 100.0, 10.0)])
    for box, right_box in (([0, 0, 95, 95], True), ([0, 0, 80, 95], False), (None, False)):
        assert holds({"labels": [{"label": "red star", "box": box}]}, truth) == right_box
