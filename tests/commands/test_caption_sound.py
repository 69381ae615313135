"""Captions of what is seen and heard, by the command: against the whole model, and what another
command makes again. `tone.mp4` shows 6 s; its tone begins at 1.4 s, with a gap of 0.8 s, and ends
at 5 s."""

import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from artifacts.records.packs import read_header
from artifacts.records.store import FolderStore
from flows.core.options.text import IMAGE_PROMPT, SOUND_PROMPT, VIDEO_PROMPT
from stages.models.processors.loading import load_processor
from tests.support import gpus
from tests.support.clips import joint_model
from tests.support.commands import completed
from tests.support.inside import run_inside
from tests.support.media import write_video
from tests.support.omni import OMNI, omni_checkpoint
from tests.support.pipeline import PENSTOCK, Place, kill_at, place_below
from tests.support.whole_model import frames_of, media_of

DATA = Path(__file__).parents[1] / "data"
PROMPT = "Say what is heard."
TOKENS = 8
SHORT = ("--chunk", "2", "--max-new-tokens", str(TOKENS))
MADE = ("--prompt", PROMPT, *SHORT)
KILLS = [(stage, victim) for stage in ("sound", "hear", "decode") for victim in ("child", "group")]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """A finished run over a video with sound, one without, and an image; its frames and its sound
    are kept."""
    folder = tmp_path_factory.mktemp("heard")
    clips = folder / "clips"
    clips.mkdir()
    shutil.copy(DATA / "tone.mp4", clips)
    write_video(clips / "silent.mp4")
    Image.fromarray(np.full((32, 48, 3), 90, np.uint8)).save(clips / "image.png")
    made = place_below(folder, model=omni_checkpoint(OMNI[0]))
    run_inside(made, prompt=PROMPT, chunk=2.0, max_new_tokens=TOKENS, keep_frames=True)
    yield made
    shutil.rmtree(folder)


def counts(place: Place) -> dict[str, int]:
    """Stage → number of records that the last run made."""
    return {name: stage["items"] for name, stage in place.stages().items() if stage["items"]}


def sounds_of(place: Place) -> dict[float, Any]:
    """Start of a chunk → its stored samples."""
    store = FolderStore(place.store)
    return {
        at.meta["start"]: np.frombuffer(store.get(name, at.offset, at.length), "<i2")
        for name in store.list("sound")
        for _, at in read_header(store, name)
    }


@pytest.mark.slow
def test_only_chunks_with_sound_are_captioned_with_it(place: Place) -> None:
    rows = place.captions()
    heard = {(row["media_path"], row["start"]) for row in rows if "heard" in row}
    assert heard == {("tone.mp4", 0.0), ("tone.mp4", 2.0), ("tone.mp4", 4.0)}
    for row in rows:
        parts = {"vision", "audio", "language"} if "heard" in row else {"vision", "language"}
        assert row["precision"].keys() == parts
    assert counts(place)["hear"] == 3


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:__array__ implementation")  # of the processor
def test_captions_are_those_of_the_whole_model(place: Place) -> None:
    processor, model = load_processor(Path(place.model)), joint_model(Path(place.model))
    sounds, found = sounds_of(place), {}
    for row, (meta, pixels) in zip(place.captions(), frames_of(place), strict=True):
        if "heard" not in row:
            continue
        # The context holds fewer frames than are stored.
        seen = [at for at, time in enumerate(meta["times"]) if time in row["frames"]]
        chunk = ({**meta, "times": row["frames"]}, pixels[seen])
        content = [{"type": "video"}, {"type": "text", "text": PROMPT}]
        turn = [{"role": "user", "content": content}]
        text = processor.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
        media, sound = media_of("video", [chunk]), sounds[row["start"]].astype(np.float32) / 32768
        given = {"load_audio_from_video": True, "audio_from_video_indices": [0]}
        given |= {"fps": media["video_metadata"][0]["fps"], "return_tensors": "pt", **media}
        inputs = processor(text=[text], audio=[sound], **given)
        inputs.pop("video_metadata", None)
        options: dict[str, Any] = {"use_audio_in_video": True, "max_new_tokens": TOKENS}
        with torch.inference_mode():
            ids = model.generate(**inputs, do_sample=False, **options)
        new = ids[0, inputs["input_ids"].shape[1] :]
        found[row["start"]] = processor.decode(new, skip_special_tokens=True).strip()
    rows = [row for row in place.captions() if "heard" in row]
    assert found == {row["start"]: row["caption"] for row in rows}


@pytest.mark.slow
def test_the_default_prompt_loads_neither_encoder_and_asks_for_sound_where_it_is(
    place: Place,
) -> None:
    result = place.run(*SHORT)
    assert result.returncode == 0, result.stderr
    assert counts(place).keys() == {"decode"}
    asked = {(row["media_path"], "heard" in row): row["prompt"] for row in place.captions()}
    assert asked == {
        ("tone.mp4", True): SOUND_PROMPT,
        ("silent.mp4", False): VIDEO_PROMPT,
        ("image.png", False): IMAGE_PROMPT,
    }


@pytest.mark.slow
def test_a_rebuild_makes_the_features_of_sound_and_prunes_them(
    place: Place, expected: Any, tmp_path: Path
) -> None:
    there = beside(place, tmp_path)
    clips = tmp_path / "clips"
    shutil.copytree(place.clips, clips)
    command = [*PENSTOCK, "cache", "rebuild", str(clips), "--model", place.model]
    command += ["--store", str(there.store), "--chunk", "2"]

    def rebuild() -> str:
        done = completed(command, check=True)
        return done.stdout

    assert "encoded 5 chunks and the sound of 3 chunks" in rebuild()
    assert there.stored("heard") == expected[1]
    assert "encoded 0 chunks" in rebuild()
    made = replace(there, clips=clips)
    assert made.run(*MADE).returncode == 0
    assert counts(made).keys() == {"decode"}
    assert len(made.captions()) == len(place.captions())


@pytest.mark.slow
def test_sound_off_gives_other_captions_of_sounding_chunks_alone(place: Place) -> None:
    place.run(*MADE)
    with_sound = place.captions()
    result = place.run(*MADE, "--sound", "off")
    assert result.returncode == 0, result.stderr
    assert counts(place) == {"decode": 3}, "what has no sound is not captioned again"
    without = place.captions()
    assert not any("heard" in row or "audio" in row["precision"] for row in without)
    assert len(without) == len(with_sound)
    for one, other in zip(with_sound, without, strict=True):
        assert (one["caption"] != other["caption"]) if "heard" in one else (one == other)


def contents(place: Place) -> tuple[bytes, dict[str, str]]:
    """The captions, and the stored features of sound."""
    return (place.out / "captions.jsonl").read_bytes(), place.stored("heard")


@pytest.fixture(scope="module")
def expected(place: Place) -> tuple[bytes, dict[str, str]]:
    """What the run leaves that nothing disturbed."""
    assert place.run(*MADE).returncode == 0
    return contents(place)


def beside(place: Place, folder: Path) -> Place:
    """The same run with another store and output."""
    return replace(place, out=folder / "out", store=folder / "store")


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "victim"), KILLS)
def test_a_killed_run_ends_with_the_same_bytes(
    place: Place, expected: Any, tmp_path: Path, stage: str, victim: str
) -> None:
    killed = beside(place, tmp_path)
    ended = kill_at(killed, stage, 1, victim, *MADE)
    assert ended == (0 if victim == "child" else -9)
    assert killed.run(*MADE).returncode == 0
    assert contents(killed) == expected


@pytest.mark.slow
def test_cards_share_the_sound(place: Place, tmp_path: Path) -> None:
    """With two simulated GPUs and with one, each sound is encoded once, to the same bytes."""
    found = []
    for count in (1, 2):
        run = beside(place, tmp_path / str(count))
        run.out.parent.mkdir()
        cards = gpus.plain(gpus=tuple(map(gpus.gpu, range(count)))).write(run.out.parent / "gpus")
        more = {n: str(run.out.parent) for n in ("XDG_CACHE_HOME", "PENSTOCK_LOCKS")}
        command = run.command(*MADE, "--gpus", "all", "--batch-size", "1")
        done = completed(command, env=gpus.environment(cards, **more))
        assert done.returncode == 0, done.stderr
        found.append(contents(run))
        assert len(run.stages()["hear"].get("devices") or [1]) == count
    assert found[0] == found[1]


@pytest.mark.slow
def test_a_model_that_hears_nothing_is_refused(tmp_path: Path) -> None:
    demo = Place(clips=DATA / "tone.mp4", out=tmp_path / "out", store=tmp_path / "store")
    result = demo.run("--sound", "on")
    assert result.returncode == 2
    assert "demo hears nothing (it has no audio encoder)" in result.stderr
    assert not os.path.exists(demo.out)
