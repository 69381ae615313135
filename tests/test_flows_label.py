"""`penstock label`: labels of pictures and of videos' frames, by vectors that are made once; killed
in each stage, planned, shown, rebuilt."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from flows.cli.main import main
from tests.support.dual_encoders import save_clip
from tests.support.embedding import items, write_images
from tests.support.families import hf
from tests.support.media import write_video
from tests.support.pipeline import Place, kill_at, read_lines
from tests.support.refusals import one_line

LABELS = "cat,sky,green"


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_images(tmp_path_factory.mktemp("pictures"))
    write_video(folder / "v.mp4", ticks=range(90))
    return folder


def label(sources: Path, model: Path, place: Path, *more: str, labels: str = LABELS) -> int:
    # The tiny tokenizer writes no end, so that the half reads the first letter alone.
    (place / "templates.txt").write_text("{} in a photo\n")
    where = ["--store", str(place / "store"), "--out", str(place / "out")]
    where += ["--templates", str(place / "templates.txt")]
    return main(["label", str(sources), "--model", str(model), "--labels", labels, *where, *more])


def lines(place: Path) -> list[dict[str, Any]]:
    return read_lines(place / "out" / "labels.jsonl")


def test_labels_are_those_of_the_whole_model_and_another_set_opens_no_picture(
    pictures: Path, clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert label(pictures, clip, tmp_path, "--format", "csv,parquet,txt") == 0
    out = tmp_path / "out"
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.endswith(f"; view them with `penstock report {out}`") and ".txt: 7 written" in last
    written = {path.name for path in out.iterdir() if path.is_file() and path.suffix != ".txt"}
    unnamed = {name for name in written if not name.startswith(".") and name not in last}
    assert unnamed <= {"failures.jsonl", "run.json"}
    assert items(tmp_path) == {"frames": 7, "embed": 7, "embed_texts": 1}
    found = lines(tmp_path)
    assert [row["time"] for row in found] == [None] * 6 + [0.0, 1.0, 2.0]
    stills = [row for row in found if row["time"] is None]
    processor: Any = hf.AutoProcessor.from_pretrained(clip)
    images = [Image.open(pictures / row["media_path"]) for row in stills]
    told = [f"{name} in a photo" for name in LABELS.split(",")]
    with torch.inference_mode():
        whole = hf.CLIPModel.from_pretrained(clip).eval()
        inputs = processor(images=images, text=told, padding=True, return_tensors="pt")
        wanted = whole(**inputs).logits_per_image / whole.logit_scale.exp()
    scores = [{one["label"]: one["score"] for one in row["labels"]} for row in stills]
    assert np.allclose(
        [[each[name] for name in LABELS.split(",")] for each in scores], wanted, atol=2e-5
    )
    for row in found:
        given = [one["label"] for one in row["labels"] if one["passed"]]
        assert given and row["top"] == row["labels"][0]["label"] == given[0]
        assert all(one["why"] for one in row["labels"])
    report = json.loads((tmp_path / "out" / "label_report.json").read_text())
    assert report["pictures"] == 9 and report["bias"] == 0
    with (tmp_path / "out" / "labels.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 9
    text = (tmp_path / "out" / "p0.txt").read_text()
    assert text.strip().split(", ")[0] == stills[0]["top"]

    assert label(pictures, clip, tmp_path, labels="dog,house") == 0
    assert items(tmp_path) == {"frames": 0, "embed": 0, "embed_texts": 1}
    assert {row["top"] for row in lines(tmp_path)} <= {"dog", "house"}
    assert label(pictures, clip, tmp_path) == 0  # and the first is remembered
    assert items(tmp_path) == {"frames": 0, "embed": 0, "embed_texts": 0}
    assert lines(tmp_path) == found


@pytest.mark.slow
def test_tiles_tell_where_a_label_was_seen(clip: Path, tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    draw = np.random.default_rng(0)
    Image.fromarray(draw.integers(0, 255, (300, 420, 3), np.uint8)).save(folder / "large.png")
    Image.fromarray(draw.integers(0, 255, (40, 50, 3), np.uint8)).save(folder / "small.png")
    assert label(folder, clip, tmp_path, "--tiles", "auto", labels="a,b,c,d,e") == 0
    assert items(tmp_path) == {"frames": 2, "embed": 2, "embed_texts": 1}  # one decoding each
    large, small = lines(tmp_path)
    assert all(one["box"] is None for one in small["labels"])
    assert small["tiles"] == large["tiles"] == "auto"
    for one in large["labels"]:
        if one["box"] is not None:
            left, top, right, bottom = one["box"]
            assert 0 <= left < right <= 420 and 0 <= top < bottom <= 300
    assert label(folder, clip, tmp_path, "--tiles", "auto", labels="f,g") == 0
    assert items(tmp_path) == {"frames": 0, "embed": 0, "embed_texts": 1}


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--threshold", "high"], "invalid --threshold 'high'"),
        (["--top", "0"], "invalid --top 0"),
        (["--format", "webdataset"], "unknown --format webdataset. Choose from jsonl, csv"),
        (["--tiles", "many"], "unknown --tiles many"),
    ],
)
def test_a_wrong_option_is_told_in_one_line(
    tmp_path: Path, more: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert label(tmp_path, tmp_path, tmp_path, *more) == 2
    assert said in one_line(capsys.readouterr().err)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["embed_texts", "frames", "embed"])
def test_a_run_that_is_killed_in_any_stage_gives_the_same_bytes(
    stage: str, pictures: Path, clip: Path, tmp_path: Path
) -> None:
    whole = tmp_path / "whole"
    whole.mkdir()
    assert label(pictures, clip, whole) == 0
    more = ("--labels", LABELS, "--templates", str(whole / "templates.txt"))
    place = Place(
        clips=pictures,
        out=tmp_path / "out",
        store=tmp_path / "store",
        model=str(clip),
        verb="label",
    )
    assert kill_at(place, stage, 1, "group", *more) != 0
    assert place.run(*more).returncode == 0
    wanted = (whole / "out" / "labels.jsonl").read_bytes()
    assert (tmp_path / "out" / "labels.jsonl").read_bytes() == wanted


@pytest.mark.slow
def test_the_other_commands_know_labels_by_what_the_stage_declares(
    pictures: Path, clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store, out = ["--store", str(tmp_path / "store")], str(tmp_path / "out")
    plan = ["plan", str(pictures), "--for", "label", "--model", str(clip), *store]
    assert main([*plan, "--json"]) == 0
    planned = json.loads(capsys.readouterr().out)["memory"]["stages"]
    assert [stage["stage"] for stage in planned] == ["frames", "embed", "embed_texts"]
    assert label(pictures, clip, tmp_path) == 0
    found = {stage["stage"]: stage for stage in planned}
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    (texts,) = (stage for stage in record["stages"] if stage["name"] == "embed_texts")
    taken = texts["peak_host_bytes"] - texts["notes"]["loaded_bytes"]
    assert 0 < taken <= found["embed_texts"]["peak_bytes"]
    capsys.readouterr()
    assert main(["status", out]) == 0
    assert "embed_texts" in capsys.readouterr().out
    assert main(["report", out]) == 0
    assert main(["cache", "ls", *store]) == 0
    assert "texts" in capsys.readouterr().out
    assert main(["cache", "verify", *store]) == 0
    assert main(["cache", "gc", "--max", "1B", *store]) in (0, 1)
    assert label(pictures, clip, tmp_path) == 0
    assert items(tmp_path)["embed_texts"] == 1
