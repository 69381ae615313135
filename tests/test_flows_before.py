"""A store and outputs that an earlier version wrote (scripts/store_before.py): every question is
answered from them, and says the same."""

import shutil
from pathlib import Path

import pytest

from flows.console.display import Display
from flows.options.commands import CaptionConfig
from flows.running.run import caption
from scripts.store_before import BEFORE, FORMATS, PROMPTS
from tests.support.inside import InsideLauncher

CHANGED = "if finished work is meant to be done again, run scripts/store_before.py"


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow][:at]) for at, n in enumerate(PROMPTS)]
)
def test_what_an_earlier_version_stored_answers_now(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for part in ("clips", "store"):
        shutil.copytree(BEFORE / part, tmp_path / part)
    monkeypatch.chdir(tmp_path)
    launcher = InsideLauncher()
    config = CaptionConfig(
        sources=("clips",),
        model="demo",
        precision="fp32",
        chunk=2.0,
        store="store",
        out=name,
        prompt=dict(zip(PROMPTS[name][::2], PROMPTS[name][1::2], strict=True)).get("--prompt"),
        format=tuple(FORMATS[1].split(",")),
    )
    result = caption(config, Display(quiet=True), lambda _: launcher)
    assert set(launcher.started) <= {"describe"}, CHANGED
    assert (result.captions, result.failures) == (5, [])
    written = {p.name: p.read_bytes() for p in (BEFORE / name).iterdir()}
    assert {n: (tmp_path / name / n).read_bytes() for n in written} == written, CHANGED
