"""`penstock label` among the other commands: killed in each stage, planned, shown, rebuilt."""

import json
from pathlib import Path

import pytest

from flows.cli.main import main
from tests.support.dual_encoders import save_clip
from tests.support.embedding import items, write_pictures
from tests.support.pipeline import Place, kill_at

LABELS = ("--labels", "cat,sky,green")


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("pictures"))


def label(pictures: Path, clip: Path, place: Path, *more: str) -> int:
    where = ["--store", str(place / "store"), "--out", str(place / "out")]
    return main(["label", str(pictures), "--model", str(clip), *LABELS, *where, *more])


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["embed_texts", "frames", "embed"])
def test_a_run_that_is_killed_in_any_stage_gives_the_same_bytes(
    stage: str, pictures: Path, clip: Path, tmp_path: Path
) -> None:
    assert label(pictures, clip, tmp_path / "whole") == 0
    place = Place(
        clips=pictures,
        out=tmp_path / "out",
        store=tmp_path / "store",
        model=str(clip),
        verb="label",
    )
    assert kill_at(place, stage, 1, "group", *LABELS) != 0
    assert place.run(*LABELS).returncode == 0
    wanted = (tmp_path / "whole" / "out" / "labels.jsonl").read_bytes()
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
