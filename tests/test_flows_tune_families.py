"""Training on features of models that are run by every route: the loss falls, the adapter loads,
and captions change; a model that cannot be taught is refused with the reason."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from artifacts.errors import UsageError
from flows.console.display import Display
from flows.options.tune import TuneConfig
from flows.results.tuned import AdapterScore, Tuned
from flows.running.tune import tune
from tests.support.checkpoints import whole_checkpoint
from tests.support.inside import InsideLauncher, run_inside
from tests.support.media import write_numbered
from tests.support.pipeline import Place

pytestmark = pytest.mark.slow

TOKENS = 8
STEPS = 24
CAPTION = "red, blue"
ROUTES = {
    "gemma3": "protocol",
    "llama4": "protocol",
    "perception_lm": "protocol",
    "florence2": "replay",
    "blip_2": "splice",
}
"""Family → the route that its features go by."""


@pytest.fixture
def place(tmp_path: Path) -> Place:
    clips = write_numbered(tmp_path / "clips", 4)
    return Place(clips=clips, out=tmp_path / "out", store=tmp_path / "store")


def of(place: Place, family: str) -> Place:
    return replace(place, model=str(whole_checkpoint(family)))


def captions(place: Place, **options: Any) -> list[str]:
    run_inside(place, max_new_tokens=TOKENS, language_precision="fp32", **options)
    return [caption["caption"] for caption in place.captions()]


def tuned(place: Place, **options: Any) -> Tuned | AdapterScore:
    data = place.out.parent / "data.jsonl"
    rows = [{"file_name": f"clips/{at}.png", "text": CAPTION} for at in range(4)]
    data.write_text("\n".join(map(json.dumps, rows)))
    asked = {"steps": STEPS, "lr": 2e-2, "precision": "fp32", "validate": 0.0, "batch_size": 4}
    config = TuneConfig(
        data=str(data),
        model=str(place.model),
        store=str(place.store),
        out=str(place.out.parent / "adapter"),
        max_new_tokens=TOKENS,
        **{**asked, **options},
    )
    return tune(config, Display(quiet=True), lambda listen: InsideLauncher(listen=listen))


@pytest.mark.parametrize("family", ROUTES)
def test_the_loss_falls_and_captions_change(place: Place, family: str) -> None:
    of_family = of(place, family)
    plain = captions(of_family)
    told = json.loads((place.out / "run.json").read_text())
    assert told["plan"]["route"] == ROUTES[family]
    found = tuned(of_family)
    assert isinstance(found, Tuned)
    losses = found.record["losses"]
    assert losses[-1] < 0.7 * losses[0]
    said = captions(of_family, adapter=str(place.out.parent / "adapter"))
    assert said != plain
    scored = tuned(of_family, validate_only=True)
    assert isinstance(scored, AdapterScore) and scored.score["loss"] < losses[0]


def test_what_is_run_whole_is_refused_with_the_reason(place: Place) -> None:
    with pytest.raises(UsageError, match="joint") as caught:
        tuned(of(place, "mllama"))
    assert "\n" not in str(caught.value)
