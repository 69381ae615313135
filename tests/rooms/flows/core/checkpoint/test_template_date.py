"""Chat templates that ask for today's date get one date per store."""

import shutil
from datetime import date
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from artifacts.records.store import FolderStore
from flows.core.checkpoint import template_date
from flows.interfaces.cli.main import main
from penstock_demo import CHECKPOINT
from stages.models import describe
from stages.models.loading import ModelJob

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


def on(day: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Day(date):
        @classmethod
        def today(cls) -> "Day":
            return cls.fromisoformat(day)

    monkeypatch.setattr(template_date, "date", Day)


def test_a_template_that_asks_for_the_date_gets_that_of_its_first_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = model_of(tmp_path / "model", "strftime_now('%d %B %Y')")
    small = {"chat_template.jinja": "ab" * 32, "config.json": "cd" * 32}
    stores = [FolderStore(tmp_path / name) for name in ("one", "two")]
    on(FIRST, monkeypatch)
    assert template_date.template_date(stores[0], folder, small, "") == FIRST
    on(LATER, monkeypatch)
    today = [template_date.template_date(store, folder, small, "") for store in stores]
    assert today == [FIRST, LATER]
    assert template_date.template_date(stores[0], folder, small, "1999-12-31") == "1999-12-31"
    assert template_date.template_date(stores[0], CHECKPOINT, small, LATER) == ""
    for day, shown in zip(today, ("02 January 2020", "30 November 2021"), strict=True):
        processor = ModelJob(model=str(folder), today=day).processor()
        turns = [{"role": "user", "content": "What?"}]
        text = processor.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        assert text.endswith(f"assistant\n{shown} ")


@pytest.mark.parametrize("today", ["yesterday", "2024-02-30", "20240102", "2024-W01-1", "24-1-2"])
def test_what_is_no_date_fails(today: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = {
        "caption": ["caption", "videos", "--model", "demo"],
        "tune": ["tune", "videos", "--model", "demo", "--out", "adapter"],
        "serve": ["serve", "--caption-model", "demo"],
    }
    for command in words.values():
        assert main([*command, "--today", today]) == 2
        printed = capsys.readouterr().err
        assert f"invalid --today '{today}'. Give a date such as 2026-01-31" in printed
        assert len(printed.splitlines()) == 1


@pytest.mark.slow
def test_a_model_is_described_with_the_date_of_its_prompts(tmp_path: Path) -> None:
    model = model_of(tmp_path / "model", "'x ' * (strftime_now('%m') | int)")
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    tokens = [len(tokenizer.encode(f" {'x ' * month}").ids) for month in (2, 12)]
    found = [describe(model, today=f"2020-{month:02d}-03").tokens_per_prompt for month in (2, 12)]
    assert found[1] - found[0] == tokens[1] - tokens[0] > 0
