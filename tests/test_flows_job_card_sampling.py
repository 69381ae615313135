"""`--sampling checkpoint` takes what generation_config.json lacks from the card of the family."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from flows.job.card_sampling import with_card_sampling
from flows.options.commands import CaptionConfig
from flows.planning.plan import figures, plan_of
from penstock_demo.clips import write_clips
from tests.support.families import checkpoint
from tests.support.inside import InsideLauncher, run_inside
from tests.support.pipeline import Place

INSTRUCT = {"do_sample": True, "temperature": 0.7, "top_p": 0.8, "top_k": 20}
"""What generation_config.json of the published Qwen3-VL Instruct states."""
CARD = {"temperature": 0.7, "top_p": 0.8, "top_k": 20, "presence_penalty": 1.5}


def folder_of(place: Path, stated: Any, model_type: str = "qwen3_vl") -> Path:
    (place / "config.json").write_text(json.dumps({"model_type": model_type}))
    if stated is not None:
        (place / "generation_config.json").write_text(json.dumps(stated))
    return place


def taken(folder: Path, **asked: Any) -> dict[str, Any]:
    """What is told to a job."""
    options = {"sampling": "checkpoint", **asked}
    config, notes = with_card_sampling(CaptionConfig(sources=(), **options), folder)
    before = CaptionConfig(sources=(), **options)
    assert not notes or config != before
    return {n: v for n, v in config.non_defaults.items() if n != "sampling"}


def test_qwen3_vl_instruct_is_given_the_presence_penalty_of_its_card(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, INSTRUCT)
    assert taken(folder) == {"presence_penalty": 1.5}
    asked = CaptionConfig(sources=(), sampling="checkpoint")
    (note,) = with_card_sampling(asked, folder)[1]
    assert "presence_penalty 1.5" in note and "QwenLM/Qwen3-VL" in note
    assert "temperature" not in note and "\n" not in note


@pytest.mark.parametrize(
    ("stated", "asked", "found"),
    [
        (None, {}, CARD),
        ({}, {}, CARD),
        ([], {}, CARD),
        ({"temperature": None}, {}, CARD),
        (None, {"temperature": 0.3, "presence_penalty": 0.5},
         {**CARD, "temperature": 0.3, "presence_penalty": 0.5}),
        (None, {"presence_penalty": 0.0}, {n: CARD[n] for n in INSTRUCT if n in CARD}),
        ({"do_sample": True, "temperature": 1.0, "top_p": 0.95, "top_k": 20}, {}, {}),
        ({"do_sample": True, "temperature": 0.9}, {}, {}),
        ({**INSTRUCT, "presence_penalty": 0}, {}, {}),
        ({**INSTRUCT, "presence_penalty": 0.2}, {}, {"presence_penalty": 0.2}),
        ({**INSTRUCT, "presence_penalty": 0.2}, {"as_published": False}, {}),
        (None, {"as_published": False}, {}),
        (None, {"sampling": "greedy"}, {}),
        (None, {"as_published": True}, CARD),
        ({"do_sample": False}, {}, {"presence_penalty": 1.5}),
    ],
)  # fmt: skip
def test_what_is_asked_for_or_stated_wins_over_the_card(
    stated: Any, asked: dict[str, Any], found: dict[str, float], tmp_path: Path
) -> None:
    assert taken(folder_of(tmp_path, stated), **asked) == found


def test_families_without_a_card_take_nothing(tmp_path: Path) -> None:
    for greedy in ("llava", "llava_onevision", "qwen2_vl", "nothing_known"):
        assert taken(folder_of(tmp_path, None, greedy)) == {}


@pytest.mark.slow
def test_plan_run_and_record_name_what_came_from_the_card(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(checkpoint("qwen3_vl"), folder)
    stated = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps({**stated, **INSTRUCT}))
    write_clips(tmp_path / "clips", 1, seed=5)
    where: dict[str, Any] = {name: tmp_path / name for name in ("clips", "out", "store")}
    place = Place(**where, model=str(folder))
    options: dict[str, Any] = {"sampling": "checkpoint", "max_new_tokens": 8, "limit": 1}
    for sources in ((), (str(place.clips),)):
        config = CaptionConfig(
            sources=sources, model=place.model, store=str(place.store), sampling="checkpoint"
        )
        told = figures(plan_of(config, InsideLauncher()))["notes"]
        assert sum("lacks presence_penalty 1.5" in note for note in told) == 1
    assert "lacks presence_penalty 1.5" in run_inside(place, **options).said
    record = json.loads((place.out / "run.json").read_text())
    assert record["plan"]["generation"] == {"sampling": "checkpoint", "presence_penalty": 1.5}
    rows = place.captions()
    again = run_inside(place, **options, presence_penalty=1.5)
    assert again.started == [] and place.captions() == rows
    assert "decode" in run_inside(place, **options, as_published=False).started
