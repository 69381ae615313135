"""--sampling-as-card takes frames a second, their number, the last frame and the system turn from
what the model's authors state; options overrule it, and without it nothing changes."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from artifacts.errors import UsageError
from artifacts.packs import RecordSet, stored_namespaces
from artifacts.schema import Sampling
from artifacts.store import FolderStore
from flows.checkpoint.models import Model
from flows.console.display import Display
from flows.job.card_frames import as_card, card_note, card_source, sampling_as_card
from flows.ledger.namespaces import variants_of
from flows.options.commands import CaptionConfig
from flows.pipelines import CAPTION
from flows.planning.plan import figures, plan_of
from flows.running.run import caption
from penstock_demo import CHECKPOINT
from tests.support.clips import profile_of
from tests.support.inside import InsideLauncher
from tests.support.keys_before import config_of, model_of
from tests.support.media import write_video

LLAVA_TURN = (
    "A chat between a curious human and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the human's questions."
)


def model_as(family: str, folder: Path, **changes: Any) -> Model:
    """The demo's profile over a folder whose config.json is of another family."""
    (folder / "config.json").write_text(json.dumps({"model_type": family}))
    profile = replace(profile_of(CHECKPOINT), folder=str(folder), **changes)
    return model_of(profile, config_of())


def chosen(model: Model, **options: Any) -> tuple[CaptionConfig, Sampling]:
    config = as_card(config_of(sampling_as_card=True, **options), model)
    return config, sampling_as_card(config, model)


def test_frames_and_system_turn_of_video_llava_are_those_of_its_script(tmp_path: Path) -> None:
    model = model_as("video_llava", tmp_path)
    config, sampling = chosen(model)
    assert (sampling.fps, sampling.frames, sampling.max_frames) == (None, 8, 8)
    assert sampling.last_frame and config.system == LLAVA_TURN
    note = card_note(config, model)
    assert "8 frames a chunk, from the first to the last one; system turn “A chat" in note
    assert card_source(config, model).startswith("PKU-YuanGroup/Video-LLaVA README.md")
    assert card_source(config, model) in note


@pytest.mark.parametrize(
    ("family", "options", "expected"),
    [
        ("qwen2_5_vl", {}, (2.0, None, 768)),
        ("qwen2_5_vl", {"fps": 1.0}, (1.0, None, 768)),
        ("qwen2_5_vl", {"frames": 16}, (None, 16, 16)),
        ("qwen2_5_vl", {"max_frames": 32}, (2.0, None, 32)),
        ("qwen2_5_vl", {"frames": 16, "max_frames": 8}, (None, 8, 8)),
        ("video_llava", {"fps": 4.0, "system": "Be brief."}, (4.0, None, 8)),
    ],
)
def test_options_overrule_frames_and_turn_of_the_card(
    family: str, options: dict[str, Any], expected: tuple[Any, ...], tmp_path: Path
) -> None:
    config, sampling = chosen(model_as(family, tmp_path), **options)
    assert (sampling.fps, sampling.frames, sampling.max_frames) == expected
    assert sampling.last_frame and sampling.settings["last_frame"] is True
    assert config.system == options.get("system", "")


def test_what_is_not_taken_of_a_card_is_named(tmp_path: Path) -> None:
    model = model_as("video_llava", tmp_path, takes_system=False)
    config, _ = chosen(model)
    assert config.system == ""
    assert "the chat template takes no system turn" in card_note(config, model)
    model = model_as("qwen2_5_vl", tmp_path)
    config, sampling = chosen(model, shots=True)
    assert not sampling.last_frame
    assert "--shots leaves the last frame out" in card_note(config, model)


def test_a_family_of_unknown_frames_is_refused_with_what_is_known(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        chosen(model_as("glm4v", tmp_path))
    assert caught.value.message == (
        "--sampling-as-card: neither frames nor a system turn of glm4v is known, only a context of "
        "65,536 tokens"
    )
    with pytest.raises(UsageError) as caught:
        chosen(model_as("llava", tmp_path))
    assert caught.value.message.endswith(
        "only a context of 4,096 tokens and sampling parameters (temperature 0)"
    )
    with pytest.raises(UsageError, match=r"of no_family is known, nor anything else"):
        chosen(model_as("no_family", tmp_path))


def test_the_last_frame_is_in_keys_and_records_only_where_it_is_taken(tmp_path: Path) -> None:
    model = model_as("qwen2_5_vl", tmp_path)
    plain = config_of(fps=2.0, max_frames=768)
    assert as_card(plain, model) is plain and card_note(plain, model) == ""
    sampling = sampling_as_card(plain, model)
    assert list(sampling.settings) == [
        "chunk_seconds", "shots", "fps", "frames", "min_frames", "max_frames",
    ]  # fmt: skip
    config, other = chosen(model)
    (before, *_), (after, *_) = (
        variants_of(c, model, s, CAPTION, set()) for c, s in ((plain, sampling), (config, other))
    )
    assert all(before[kind] != after[kind] for kind in ("frames", "features", "captions"))


def test_a_plan_with_media_and_without_names_the_card(tmp_path: Path) -> None:
    write_video(tmp_path / "clip.mp4", ticks=range(50), gop=25)
    for sources in ((), (str(tmp_path / "clip.mp4"),)):
        config = CaptionConfig(
            sources=sources, model="demo", precision="fp32", store=str(tmp_path / "s"),
            sampling_as_card=True,
        )  # fmt: skip
        notes = figures(plan_of(config, InsideLauncher()))["notes"]
        assert any(
            "2 frames a second, at most 768 a chunk, from the first to the last one" in note
            for note in notes
        )


def frame_times(store: Path) -> list[float]:
    """The times of the frames that were cut of the one video in a store."""
    (namespace,) = stored_namespaces(FolderStore(store), "media")
    media = RecordSet(FolderStore(store), "media", namespace)
    (found,) = map(media.meta, sorted(media.keys()))
    return [round(time, 2) for time in found["chunks"][0]["times"]]


@pytest.mark.slow
def test_a_run_takes_the_last_frame_and_records_the_card(tmp_path: Path) -> None:
    write_video(tmp_path / "clip.mp4", ticks=range(50), gop=25)
    times, records = {}, {}
    for name, card in (("card", True), ("plain", False)):
        config = CaptionConfig(
            sources=(str(tmp_path / "clip.mp4"),), model="demo", precision="fp32", fps=2.0,
            store=str(tmp_path / f"store-{name}"), out=str(tmp_path / name), max_new_tokens=4,
            sampling_as_card=card,
        )  # fmt: skip
        assert caption(config, Display(quiet=True), lambda _: InsideLauncher()).failures == []
        times[name] = frame_times(tmp_path / f"store-{name}")
        records[name] = json.loads((tmp_path / name / "run.json").read_text())["plan"]
    assert times["plain"] == [0.0, 0.5, 1.0, 1.5]
    assert times["card"] == [0.0, 0.53, 1.1, 1.63]
    assert records["card"]["sampling"]["last_frame"] is True
    assert records["card"]["sampling_as_card"].startswith("QwenLM/Qwen3-VL")
    assert "last_frame" not in records["plain"]["sampling"]
    assert "sampling_as_card" not in records["plain"]
