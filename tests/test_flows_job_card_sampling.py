"""`--sampling checkpoint` takes what generation_config.json lacks from the card of the family."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from flows.job.card_sampling import with_card_sampling
from flows.job.config import CaptionConfig
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
    return {n: v for n, v in config.generation.told.items() if n != "sampling"}


def test_qwen3_vl_instruct_is_given_the_presence_penalty_of_its_card(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, INSTRUCT)
    assert taken(folder) == {"presence_penalty": 1.5}
    asked = CaptionConfig(sources=(), sampling="checkpoint")
    (note,) = with_card_sampling(asked, folder)[1]
    assert "presence_penalty 1.5" in note and "QwenLM/Qwen3-VL" in note
    assert "temperature" not in note and "\n" not in note


@pytest.mark.parametrize("stated", [None, {}, {"eos_token_id": 1}, [], {"temperature": None}])
def test_a_checkpoint_that_states_nothing_is_given_all_of_its_card(
    stated: Any, tmp_path: Path
) -> None:
    assert taken(folder_of(tmp_path, stated)) == CARD


def test_what_is_asked_for_wins(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, None)
    found = taken(folder, temperature=0.3, presence_penalty=0.5)
    assert found == {**CARD, "temperature": 0.3, "presence_penalty": 0.5}
    assert taken(folder, presence_penalty=0.0) == {n: CARD[n] for n in INSTRUCT if n in CARD}


@pytest.mark.parametrize(
    "stated",
    [
        {"do_sample": True, "temperature": 1.0, "top_p": 0.95, "top_k": 20},
        {"do_sample": True, "temperature": 0.9},
        {**INSTRUCT, "presence_penalty": 0},
    ],
)
def test_what_generation_config_has_wins_and_a_thinking_checkpoint_takes_nothing(
    stated: dict[str, Any], tmp_path: Path
) -> None:
    assert taken(folder_of(tmp_path, stated)) == {}


def test_a_presence_penalty_of_generation_config_counts(tmp_path: Path) -> None:
    stated = folder_of(tmp_path, {**INSTRUCT, "presence_penalty": 0.2})
    assert taken(stated) == {"presence_penalty": 0.2}
    assert taken(stated, as_published=False) == {}


def test_a_checkpoint_that_says_it_is_greedy_stays_greedy(tmp_path: Path) -> None:
    assert taken(folder_of(tmp_path, {"do_sample": False})) == {"presence_penalty": 1.5}
    (tmp_path / "generation_config.json").unlink()
    for greedy in ("llava", "llava_onevision", "qwen2_vl", "nothing_known"):
        assert taken(folder_of(tmp_path, None, greedy)) == {}


def test_without_the_option_or_as_stock_nothing_is_taken(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, None)
    assert taken(folder, as_published=False) == {}
    assert taken(folder, sampling="greedy") == {}
    assert taken(folder, as_published=True) == CARD


@pytest.mark.slow
def test_plan_run_and_record_name_what_came_from_the_card(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(checkpoint("qwen3_vl"), folder)
    stated = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps({**stated, **INSTRUCT}))
    write_clips(tmp_path / "clips", 1, seed=5)
    place = Place(
        clips=tmp_path / "clips",
        out=tmp_path / "out",
        store=tmp_path / "store",
        model=str(folder),
    )
    options: dict[str, Any] = {"sampling": "checkpoint", "max_new_tokens": 8, "limit": 1}
    for sources in ((), (str(place.clips),)):
        asked: dict[str, Any] = {
            "model": place.model,
            "store": str(place.store),
            "sampling": "checkpoint",
        }
        plan = plan_of(CaptionConfig(sources=sources, **asked), InsideLauncher())
        told = figures(plan)["notes"]
        assert sum("lacks presence_penalty 1.5" in note for note in told) == 1
    assert "lacks presence_penalty 1.5" in run_inside(place, **options).said
    record = json.loads((place.out / "run.json").read_text())
    assert record["plan"]["generation"] == {"sampling": "checkpoint", "presence_penalty": 1.5}
    rows = place.captions()
    again = run_inside(place, **options, presence_penalty=1.5)
    assert again.started == [] and place.captions() == rows
    assert "decode" in run_inside(place, **options, as_published=False).started
