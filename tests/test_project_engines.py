"""Engines by name: what people may ask for, what answers it, and who knows them."""

import re
from pathlib import Path

import pytest

from artifacts.errors import UsageError
from stages.decode.engines import (
    AUTO,
    AUTO_SHARED,
    ENGINE_CHOICES,
    ENGINES,
    accepted_by,
    choice_for,
    engines_for,
)

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("penstock", "flows", "stages", "artifacts", "penstock_demo")
HOME = ROOT / "stages" / "decode" / "engines"


def test_no_file_outside_of_their_package_knows_an_engine_by_name() -> None:
    """But for `transformers` and `gguf`, which are names of packages, too."""
    names = {*ENGINES, AUTO_SHARED} - {"transformers", "gguf"}
    named = re.compile(rf"""(["'])({"|".join(map(re.escape, names))})\1""")
    files = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    others = [path for path in files if HOME not in path.parents]
    assert len(others) > 500
    assert [path for path in others if named.search(path.read_text(encoding="utf-8"))] == []


def test_what_people_may_ask_for_and_what_answers_it_stay_in_their_order() -> None:
    one, shared, compiled, batches = (
        "inflight",
        "inflight-shared",
        "inflight-compiled",
        "transformers",
    )
    assert [*ENGINE_CHOICES] == [AUTO, batches, one, compiled, "gguf"]
    begun = {choice: [e.name for e in engines_for(choice)] for choice in (AUTO, AUTO_SHARED)}
    assert begun == {AUTO: [one, batches], AUTO_SHARED: [shared, batches]}
    more = {choice: [e.name for e in accepted_by(choice)][2:] for choice in begun}
    assert more == {AUTO: [shared, compiled], AUTO_SHARED: [one, compiled]}
    for name, engine in ENGINES.items():
        assert engines_for(name) == accepted_by(name) == (engine,)


def test_beams_and_several_prompts_choose_another_engine() -> None:
    several = {name: choice_for(name, beams=1, prompts=2) for name in ENGINE_CHOICES}
    changed = {AUTO: AUTO_SHARED, "inflight": "inflight-shared"}
    assert several == {name: changed.get(name, name) for name in ENGINE_CHOICES}
    assert [choice_for(name, beams=1, prompts=1) for name in ENGINE_CHOICES] == [*ENGINE_CHOICES]
    for name in (AUTO, "transformers"):
        assert choice_for(name, beams=4, prompts=2) == "transformers"
    for name in ("inflight", "inflight-compiled"):
        with pytest.raises(UsageError, match=f"--engine {name} does not support --beams") as caught:
            choice_for(name, beams=2, prompts=1)
        assert caught.value.hint == "Use --engine transformers"
