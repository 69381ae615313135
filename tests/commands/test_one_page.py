"""docs/one_page.py says what the program says, with transformers and PyAV alone."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import penstock
import penstock_demo
from tests.support.commands import completed

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "one_page.py"
CLIPS = [penstock_demo.CLIPS / f"clip-{number:02d}.mp4" for number in (1, 2, 3)]


def one_page(*words: Path) -> subprocess.CompletedProcess[str]:
    done = completed([sys.executable, str(PAGE), *map(str, words)])
    assert done.returncode == 0, done.stderr
    return done


@pytest.mark.slow
def test_one_page_says_the_words_of_the_program(tmp_path: Path) -> None:
    said = one_page(penstock_demo.CHECKPOINT, tmp_path / "features", *CLIPS).stdout.splitlines()
    captions = penstock.caption(CLIPS, model="demo", out=tmp_path / "out")
    assert said == sorted(f"{Path(row.media_path).name}: {row.caption}" for row in captions)


@pytest.mark.slow
def test_it_decodes_without_the_videos_once_their_features_are_there(tmp_path: Path) -> None:
    clip = tmp_path / "clip.mp4"
    clip.write_bytes(CLIPS[0].read_bytes())
    first = one_page(penstock_demo.CHECKPOINT, tmp_path / "features", clip).stdout
    clip.unlink()
    assert one_page(penstock_demo.CHECKPOINT, tmp_path / "features", clip).stdout == first != ""


def test_it_is_a_page_and_imports_nothing_of_the_program() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert text.count("\n") <= 300
    assert not re.search(r"^\s*(from|import) (penstock|flows|stages|artifacts)", text, re.MULTILINE)
