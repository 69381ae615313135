"""Chat templates that ask for today's date get one date per store."""

import json
import shutil
from datetime import date
from pathlib import Path

import pytest

from artifacts.store import FolderStore
from flows.checkpoint import template_date
from flows.cli.main import main
from penstock_demo import CHECKPOINT
from stages.models.loading import ModelJob
from tests.support.pipeline import read_lines

FIRST, LATER = "2020-01-02", "2021-11-30"


def model_of(folder: Path, day: str) -> Path:
    """Copy the demo's checkpoint, with a template that begins each answer with the day: this
    expression."""
    shutil.copytree(CHECKPOINT, folder)
    template = (folder / "chat_template.jinja").read_text()
    before = "<|im_start|>assistant\n"
    assert before in template
    written = template.replace(before, f"{before}{{{{ {day} }}}} ")
    (folder / "chat_template.jinja").write_text(written)
    return folder


def captions(here: Path, model: Path, out: str, store: str = "store") -> list[str]:
    words = ["caption", "videos", "--model", str(model), "--quiet", "--out", out]
    assert main([*words, "--store", str(here / store)]) == 0
    return [row["caption"] for row in read_lines(here / out / "captions.jsonl")]


def made(here: Path, out: str) -> int:
    stages = json.loads((here / out / "run.json").read_text())["stages"]
    return sum(int(stage["items"]) for stage in stages)


def on(day: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Day(date):
        @classmethod
        def today(cls) -> "Day":
            return cls.fromisoformat(day)

    monkeypatch.setattr(template_date, "date", Day)


@pytest.mark.slow
def test_captions_have_the_date_of_the_first_use_of_their_template(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asking = model_of(here / "asking", "strftime_now('%d %B %Y')")
    stated = {
        day: captions(here, model_of(here / day, f"'{text}'"), f"stated-{day}")
        for day, text in ((FIRST, "02 January 2020"), (LATER, "30 November 2021"))
    }
    on(FIRST, monkeypatch)
    assert captions(here, asking, "first") == stated[FIRST] != stated[LATER]
    on(LATER, monkeypatch)
    assert captions(here, asking, "later") == stated[FIRST] and made(here, "later") == 0
    assert captions(here, asking, "elsewhere", "other") == stated[LATER]


def test_a_template_that_asks_for_the_date_gets_that_of_its_first_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = model_of(tmp_path / "model", "strftime_now('%d %B %Y')")
    small = {"chat_template.jinja": "ab" * 32, "config.json": "cd" * 32}
    stores = [FolderStore(tmp_path / name) for name in ("one", "two")]
    on(FIRST, monkeypatch)
    assert template_date.template_date(stores[0], folder, small) == FIRST
    on(LATER, monkeypatch)
    today = [template_date.template_date(store, folder, small) for store in stores]
    assert today == [FIRST, LATER]
    assert template_date.template_date(stores[0], CHECKPOINT, small) == ""
    for day, shown in zip(today, ("02 January 2020", "30 November 2021"), strict=True):
        processor = ModelJob(model=str(folder), today=day).processor()
        turns = [{"role": "user", "content": "What?"}]
        text = processor.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        assert text.endswith(f"assistant\n{shown} ")
