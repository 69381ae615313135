"""What another stage takes is counted: `thumb`, a JPEG of each chunk, which is planned, run, shown
and resumed like those that the program has."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

import penstock_demo
from tests.support.toys import inside, patched
from tests.test_project_layers import lint

CLIPS = ("clip-01.mp4", "clip-02.mp4", "clip-03.mp4")


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("toy")
    (folder / "clips").mkdir()
    for name in CLIPS:
        shutil.copy(penstock_demo.CLIPS / name, folder / "clips")
    return patched("stage", folder)[0]


def penstock(copy: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    done = inside(copy, "-m", "flows.cli.main", *arguments)
    assert done.returncode == 0, done.stderr
    return done


def thumb(copy: Path, *more: str) -> str:
    places = ["--store", str(copy.parent / "store"), "--out", str(copy.parent / "out")]
    clips = str(copy.parent / "clips")
    done = penstock(copy, "thumb", clips, "--model", "demo", *places, *more)
    return done.stdout + done.stderr


def items(copy: Path) -> dict[str, int]:
    record = json.loads((copy.parent / "out" / "run.json").read_text())
    return {stage["name"]: stage["items"] for stage in record["stages"]}


def test_a_stage_takes_seven_files(tmp_path: Path) -> None:
    _, names = patched("stage", tmp_path)
    assert len(names) <= 7, names


def test_the_layers_hold_with_it(copy: Path) -> None:
    done = lint(copy)
    assert done.returncode == 0, done.stdout


@pytest.mark.slow
def test_it_is_planned_run_shown_and_resumed(copy: Path) -> None:
    out = copy.parent / "out"
    planned = thumb(copy, "--dry-run")
    assert "  thumb " in planned and "decode" not in planned and not out.exists()
    told = thumb(copy)
    assert "making thumbs: 3 to do" in told
    assert items(copy) == {"frames": 3, "thumb": 3}
    for path in sorted(out.glob("*.jpg")):
        with Image.open(path) as image:
            assert image.format == "JPEG" and max(image.size) == 64
    first = {path.name: path.read_bytes() for path in out.glob("*.jpg")}
    assert len(first) == 3
    status = penstock(copy, "status", str(out)).stdout
    assert re.search(r"^thumb +3 ", status, re.MULTILINE) and "\ndecode" not in status
    penstock(copy, "report", str(out))
    assert "thumb" in (out / "report.html").read_text()

    assert thumb(copy) == "" and items(copy) == {"frames": 0, "thumb": 0}
    # The frames are given back: of a record that is lost, and of it alone, all is made anew.
    lose_one(copy)
    thumb(copy)
    assert items(copy) == {"frames": 1, "thumb": 1}
    assert {path.name: path.read_bytes() for path in out.glob("*.jpg")} == first


def lose_one(copy: Path) -> None:
    packs = sorted((copy.parent / "store" / "thumbs").rglob("*.pack"))
    assert len(packs) == len(CLIPS)
    packs[0].unlink()


@pytest.mark.slow
def test_captions_are_as_they_were_without_it(copy: Path, tmp_path: Path) -> None:
    clip = str(copy.parent / "clips" / CLIPS[0])
    said = []
    for folder, name in ((copy, "with"), (Path(__file__).resolve().parent.parent, "without")):
        places = ["--store", str(tmp_path / name), "--out", str(tmp_path / f"out-{name}")]
        done = subprocess.run(
            [sys.executable, "-m", "flows.cli.main", "caption", clip, "--model", "demo", *places],
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        said.append((tmp_path / f"out-{name}" / "captions.jsonl").read_bytes())
    assert said[0] == said[1]
