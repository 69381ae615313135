"""Which frames are taken: what the authors of a model state (--sampling-as-card), frames of a whole
file (--whole), and the shots of clips joined into one file (--shots)."""

import functools
import json
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from artifacts.errors import UsageError
from artifacts.packs import RecordSet, stored_namespaces
from artifacts.schema import WHOLE_SECONDS, FrameFit, Sampling
from artifacts.store import FolderStore
from flows.checkpoint.models import Model
from flows.console.display import Display
from flows.job.card_sampling import as_card, card_note, card_source, sampling_as_card
from flows.ledger.namespaces import variants_of
from flows.options.commands import CaptionConfig
from flows.pipelines import CAPTION
from flows.planning.plan import figures, plan_of
from flows.running.run import caption
from flows.upkeep.cache import sampling_text
from penstock_demo import CHECKPOINT
from stages.frames.reader import Decoder
from stages.frames.video import Video
from tests.support.checkpoints import whole_checkpoint
from tests.support.clips import profile_of
from tests.support.families import checkpoint
from tests.support.inside import InsideLauncher, run_inside
from tests.support.keys import config_of, model_of
from tests.support.media import picture, write_numbered, write_video
from tests.support.pipeline import Place

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


def test_the_last_frame_is_in_keys(tmp_path: Path) -> None:
    model = model_as("qwen2_5_vl", tmp_path)
    plain = config_of(fps=2.0, max_frames=768)
    assert as_card(plain, model) is plain and card_note(plain, model) == ""
    sampling = sampling_as_card(plain, model)
    assert list(sampling.settings) == [
        "chunk_seconds", "shots", "fps", "frames", "min_frames", "max_frames",
        "last_frame", "deinterlace",
    ]  # fmt: skip
    config, other = chosen(model)
    (before, *_), (after, *_) = (
        variants_of(c, model, s, CAPTION, set()) for c, s in ((plain, sampling), (config, other))
    )
    assert all(before[kind] != after[kind] for kind in ("frames", "features", "captions"))


def test_whether_interlaced_frames_keep_their_combs_is_in_keys(tmp_path: Path) -> None:
    model = model_as("qwen2_5_vl", tmp_path)
    config, combed = (config_of(deinterlace=each) for each in ("auto", "off"))
    sampling, other = model.sampling(config), model.sampling(combed)
    assert (sampling.deinterlace, other.deinterlace) == (True, False)
    (before, *_), (after, *_) = (
        variants_of(c, model, s, CAPTION, set()) for c, s in ((config, sampling), (combed, other))
    )
    assert all(before[kind] != after[kind] for kind in ("frames", "features", "captions"))
    texts = [sampling_text(each.settings) for each in (sampling, other)]
    assert texts[1] == texts[0] + ", with combs"


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
    assert records["plain"]["sampling"]["last_frame"] is False
    assert "sampling_as_card" not in records["plain"]


HOURS = 2
FRAMES = 6
SECOND = Fraction(1, 1)
GOP = 60
drawn = functools.cache(picture)


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two hours at a frame a second."""
    return write_video(
        tmp_path_factory.mktemp("long") / "long.mp4",
        ticks=range(HOURS * 3600),
        time_base=SECOND,
        gop=GOP,
        draw=lambda index, height, width: drawn(index // GOP, height, width),
    )


@pytest.fixture
def place(tmp_path: Path, long: Path) -> Place:
    """Two hours, three seconds, and a picture."""
    clips = write_numbered(tmp_path / "clips", 1)
    (clips / "long.mp4").symlink_to(long)
    write_video(clips / "short.mp4", ticks=range(90))
    return Place(clips=clips, out=tmp_path / "out", store=tmp_path / "store")


def test_a_file_has_one_caption_of_frames_from_all_of_it(place: Place) -> None:
    place = replace(place, model=str(checkpoint("qwen2_5_vl")))
    requests = {"max_frames": FRAMES, "max_new_tokens": 4}
    text = run_inside(place, whole=True, **requests).said
    assert f"captioned as a whole, by at most {FRAMES} frames evenly over it" in text
    picture_row, long, short = place.captions()
    assert (long["start"], long["end"]) == (0.0, HOURS * 3600.0)
    assert long["frames"] == [HOURS * 3600 / FRAMES * at for at in range(FRAMES)]
    assert (short["start"], short["end"]) == (0.0, 3.0) and 1 < len(short["frames"]) <= FRAMES
    values = json.loads((place.out / "run.json").read_text())["plan"]
    assert values["sampling"]["whole"] and values["sampling"]["chunk_seconds"] is None
    assert run_inside(place, whole=True, **requests).started == []
    # Pictures are no other thing than without it, and so are not looked at again.
    again = run_inside(place, chunk=4000.0, **requests)
    assert [row["media_path"] for row in place.captions()].count("long.mp4") == 2
    assert again.started == ["frames", "encode", "decode"]
    assert {**place.captions()[0], "features": ""} == {**picture_row, "features": ""}


def test_of_two_hours_few_frames_are_decoded(long: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded = []
    decode = Decoder._decode

    def counted(self: Decoder, packet: Any) -> None:
        decoded.append(packet)
        decode(self, packet)

    monkeypatch.setattr(Decoder, "_decode", counted)
    sampling = Sampling(chunk_seconds=WHOLE_SECONDS, fps=1, max_frames=FRAMES)
    with Video(long) as video:
        (plan,) = video.plan(sampling)
        assert (plan.start, plan.end, len(plan.ticks)) == (0.0, HOURS * 3600.0, FRAMES)
        (chunk,) = video.chunks([plan], FrameFit())
    assert len(chunk.pixels) == FRAMES and chunk.index.times[-1] == 6000.0
    assert len(decoded) < 4 * FRAMES * 16, "of 7,200"


def test_it_is_told_apart_from_a_long_chunk() -> None:
    whole = Sampling(chunk_seconds=WHOLE_SECONDS, frames=4, max_frames=4)
    assert whole.whole and not replace(whole, chunk_seconds=1e5).whole
    assert not replace(whole, shots=True).whole
    assert sampling_text(whole.settings) == "whole files, 4 frames"
    assert sampling_text(replace(whole, chunk_seconds=30).settings) == "30 s, 4 frames"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "frames"), [("blip", 1), ("instructblipvideo", 4), ("perception_lm", 32)]
)
def test_a_family_that_takes_few_frames_sees_them_from_all_of_it(
    place: Place, family: str, frames: int
) -> None:
    place = replace(place, model=str(whole_checkpoint(family)))
    run_inside(place, whole=True, max_new_tokens=4)
    (seen,) = [row["frames"] for row in place.captions() if row["media_path"] == "long.mp4"]
    assert len(seen) == frames
    step = HOURS * 3600 / frames
    first = step / 2 if frames == 1 else 0.0
    assert seen == pytest.approx([first + at * step for at in range(frames)], abs=1.5)
