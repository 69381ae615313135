"""Whole runs with `--adapter`: one that adds nothing says what the model says, another one what the
model says that it was merged into."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from penstock_demo import CHECKPOINT
from stages.models import describe
from tests.support.adapters import adapter_of, merged
from tests.support.checkpoints import whole_checkpoint
from tests.support.clips import profile_of
from tests.support.inside import Ran, run_inside
from tests.support.media import write_numbered
from tests.support.pipeline import Place

pytestmark = pytest.mark.slow
TOKENS = 16
STRENGTH = 0.14
"""Of random matrices that change what the demo says."""


@pytest.fixture
def place(here: Path) -> Place:
    return Place(clips=here / "videos", out=here / "out", store=here / "store")


def said(place: Place, **options: Any) -> tuple[list[dict[str, Any]], Ran]:
    ran = run_inside(place, max_new_tokens=TOKENS, **{"precision": "fp32", **options})
    return place.captions(), ran


def words(captions: list[dict[str, Any]]) -> list[str]:
    return [caption["caption"] for caption in captions]


def test_one_that_adds_nothing_says_the_same_and_another_what_the_merged_model_says(
    place: Place, tmp_path: Path
) -> None:
    profile = profile_of(CHECKPOINT)
    zero = adapter_of(tmp_path / "zero", profile, zero=True)
    random = adapter_of(tmp_path / "random", profile, STRENGTH)
    plain, _ = said(place)
    same, ran = said(place, adapter=str(zero))
    assert ran.started == ["decode"], "features are not made anew"
    assert words(same) == words(plain)
    assert len(place.stored("captions")) == 2 * len(plain), "under keys of their own"
    other, _ = said(place, adapter=str(random))
    assert words(other) != words(plain)
    told = json.loads((place.out / "run.json").read_text())
    assert told["plan"]["halves"]["language"]["adapter"]["folder"] == str(random)
    assert "adapter" not in told["plan"]["halves"]["vision"]
    assert told["stages"][-1]["notes"]["adapted_modules"] == 28
    assert other[0]["precision"]["language"].startswith("fp32 with adapter ")
    assert other[0]["precision"]["vision"] == "fp32"
    again, ran = said(place, adapter=str(random))
    assert ran.started == [] and words(again) == words(other)
    back, ran = said(place)
    assert ran.started == [] and back == plain
    whole, _ = said(replace(place, model=str(merged(CHECKPOINT, random, tmp_path / "merged"))))
    assert words(whole) == words(other)


@pytest.mark.parametrize(
    ("precision", "engine"),
    [("bf16", "inflight"), ("nf4", "inflight"), ("nf4", "transformers"), ("int8", "transformers")],
)
def test_it_goes_with_every_precision_and_engine(
    place: Place, tmp_path: Path, precision: str, engine: str
) -> None:
    profile = profile_of(CHECKPOINT)
    asked = {"language_precision": precision, "engine": engine}
    plain, _ = said(place, **asked)
    zero, _ = said(place, **asked, adapter=str(adapter_of(tmp_path / "0", profile, zero=True)))
    other, _ = said(place, **asked, adapter=str(adapter_of(tmp_path / "1", profile, STRENGTH)))
    assert words(zero) == words(plain) != words(other)


@pytest.mark.parametrize("family", ["blip", "florence2", "gemma3", "mllama"])
def test_it_goes_with_every_route(place: Place, tmp_path: Path, family: str) -> None:
    for path in place.clips.iterdir():
        path.unlink()
    write_numbered(place.clips, 2)
    place = replace(place, model=str(whole_checkpoint(family)))
    profile = describe(place.model)
    plain, _ = said(place)
    zero, ran = said(place, adapter=str(adapter_of(tmp_path / "zero", profile, zero=True)))
    other, _ = said(place, adapter=str(adapter_of(tmp_path / "random", profile, 1.0)))
    assert ran.started == ["decode"]
    assert words(zero) == words(plain) != words(other)
