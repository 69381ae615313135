"""Plans and captions with the published numbers of each family: its context, the tokens of its
frames, its vocabulary. The expected numbers come from transformers' processors and from those."""

import json
import math
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from artifacts.errors import UsageError
from flows.interfaces.cli.main import main
from stages.models.processors.blank_clips import Clip
from stages.models.processors.loading import load_processor
from stages.models.processors.prepare import prompt_overhead
from tests.support.inside import InsideLauncher, run_inside, run_through
from tests.support.media import write_numbered, write_video
from tests.support.pipeline import Place
from tests.support.processors import plain_call
from tests.support.published_models import (
    CALLS,
    change_context,
    pixtral_processor,
    published_checkpoint,
)
from tests.support.published_sizes import PUBLISHED

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

QUICK = ("llava", "paligemma", "cogvlm2")
FAMILIES = [
    pytest.param(family, marks=[] if family in QUICK else pytest.mark.slow) for family in PUBLISHED
]
NOT_IN_THE_PROMPT = ("blip", "mllama")
"""Families whose images go past the prompt, so that no number of frames exceeds the context."""
LIMITED = [param for param in FAMILIES if param.values[0] not in NOT_IN_THE_PROMPT]
SIZE = (360, 640)
"""Height and width of a frame."""
SMALL = (48, 64)
"""Height and width of a frame of a video that is captioned."""
SECONDS = 600
MANY = 4000
"""More frames than any of these contexts holds."""
TILED = ("idefics3", "llava_next", "mistral3")
"""Families whose frames of other proportions than squares have fewer tokens. The plan counts with
those of squares, and with the most marks between the rows."""
TOGETHER = ("glm4v", "qwen3_vl")
"""Families that make the frames of a video smaller the more there are, so that all fit."""
PAIRED = ("glm4v", "qwen2_vl", "qwen2_5_vl", "qwen3_vl")
"""Families that join two frames into one grid of tokens."""
MEMORY = ("--memory", "4000gb")
"""More than any of these plans needs."""
ANSWER = 256
"""Default tokens of an answer."""
USUAL_TEXT = 320
"""Tokens of a default prompt and answer."""
PROMPT = "hi"


@pytest.fixture(scope="module")
def media(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures alone, a video alone, and both of them. The video is long, and has two frames."""
    folder = tmp_path_factory.mktemp("media")
    write_numbered(folder / "pictures", 2)
    (folder / "video").mkdir()
    write_video(folder / "video" / "long.mp4", ticks=[0, 30 * SECONDS], size=SIZE)
    shutil.copytree(folder / "pictures", folder / "both")
    shutil.copy(folder / "video" / "long.mp4", folder / "both")
    return folder


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store in which each model is described once."""
    return tmp_path_factory.mktemp("store")


@pytest.fixture(autouse=True)
def describes_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `plan` describe models in this process, each once."""
    monkeypatch.setattr("flows.core.machine.launch.DirectLauncher", lambda listen: InsideLauncher())


def plan_words(source: Path, model: Path, store: Path, *more: str) -> list[str]:
    where = ["--model", str(model), "--store", str(store)]
    return ["plan", str(source), *where, "--prompt", PROMPT, *MEMORY, "--json", *more]


def planned(
    source: Path, model: Path, store: Path, capsys: pytest.CaptureFixture[str], *more: str
) -> dict[str, Any]:
    status = main(plan_words(source, model, store, *more))
    output = capsys.readouterr()
    assert status == 0, output.err
    plan: dict[str, Any] = json.loads(output.out)
    return plan


def lost_frames(notes: list[str]) -> list[str]:
    return [note for note in notes if "its context of" in note]


def prompt_tokens(family: str, frames: int, size: tuple[int, int] = SIZE) -> int:
    """Return the prompt tokens of a chunk, by transformers' processor."""
    if family == "cogvlm2":  # of its own code, which puts a mark before each frame
        return (PUBLISHED[family].frame_tokens + 1) * frames
    processor = load_processor(published_checkpoint(family))
    pixels = np.zeros((frames, *size, 3), dtype=np.uint8)
    times = tuple(float(second) for second in range(frames))
    clip = Clip(frames=pixels, times=times, seconds=float(frames), kind="video")
    inputs = plain_call(CALLS.get(family, family), processor, [clip], [PROMPT])
    return int(inputs["input_ids"].shape[1])


def expected_frames(family: str, usual: int, size: tuple[int, int] = SIZE) -> int:
    """Return how many frames fit beside the reserve: a quarter of the context, at most 1,024
    tokens. `usual`: frames of a chunk by default, which may use the reserve."""
    sizes = PUBLISHED[family]
    few, more = (prompt_tokens(family, frames, size) for frames in (2, 6))
    per_frame = (more - few) / 4
    text = few - 2 * per_frame
    if sizes.frame_tokens:
        assert per_frame >= sizes.frame_tokens
    room = sizes.context - min(1024, sizes.context // 4)
    fits = usual * per_frame + text + USUAL_TEXT <= sizes.context
    return max(int(room // per_frame), usual if fits else 0)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_plan_of_pictures_alone_speaks_of_no_chunk(
    family: str, media: Path, store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = published_checkpoint(family)
    for more in ((), ("--frames", "32")):
        plan = planned(media / "pictures", model, store, capsys, *more)
        assert (plan["files"], plan["frames"]) == (2, 2)
        assert not lost_frames(plan["notes"])


@pytest.mark.in_turn
@pytest.mark.parametrize("source", ["video", "both"])
@pytest.mark.parametrize("family", FAMILIES)
def test_plan_of_frames_that_fit_speaks_of_no_context(
    family: str, source: str, media: Path, store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = ("--whole", "--frames", "1")
    plan = planned(media / source, published_checkpoint(family), store, capsys, *one)
    pictures = 2 if source == "both" else 0
    assert plan["frames"] == pictures + 1
    assert not lost_frames(plan["notes"])


@pytest.mark.in_turn
@pytest.mark.parametrize("source", ["video", "both"])
@pytest.mark.parametrize("family", LIMITED)
def test_plan_shows_as_many_frames_of_a_chunk_as_the_context_holds(
    family: str, source: str, media: Path, store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = published_checkpoint(family)
    whole = ("--whole", "--frames", str(MANY))
    plan = planned(media / source, model, store, capsys, *whole)
    frames = plan["frames"] - (2 if source == "both" else 0)
    if family in TOGETHER:
        assert frames == MANY and not lost_frames(plan["notes"])
        return
    default = planned(media / "video", model, store, capsys)["sampling"]
    most = expected_frames(family, default["max_frames"])
    least = int(0.7 * most) if family in TILED else most - (family in PAIRED)
    assert least <= frames <= most
    (note,) = lost_frames(plan["notes"])
    assert f"{frames:,} frame" in note and f"{PUBLISHED[family].context:,} tokens" in note
    assert f"of {MANY:,};" in note


@pytest.mark.slow
@pytest.mark.parametrize("family", LIMITED)
def test_plan_names_a_chunk_or_pixels_with_which_all_frames_fit(
    family: str, media: Path, store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = published_checkpoint(family)
    for fps in ("1", "7"):
        given = ["--fps", fps, "--max-frames", str(MANY)]
        notes = lost_frames(planned(media / "video", model, store, capsys, *given)["notes"])
        if notes and (named := re.search(r"(--[\w-]+) ([\d.]+) shows them all", notes[0])):
            plan = planned(media / "video", model, store, capsys, *given, *named.groups())
            assert not lost_frames(plan["notes"]), notes[0]


def with_context(family: str, tokens: int, folder: Path) -> Path:
    """Copy the family's checkpoint, with so many positions."""
    shutil.copytree(published_checkpoint(family), folder)
    return change_context(folder, tokens)


def half_a_frame(family: str) -> int:
    return (prompt_tokens(family, 6) - prompt_tokens(family, 2)) // 8


@pytest.mark.in_turn
@pytest.mark.parametrize("source", ["video", "both"])
@pytest.mark.parametrize("family", LIMITED)
def test_plan_refuses_a_frame_that_exceeds_the_context(
    family: str,
    source: str,
    media: Path,
    store: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = with_context(family, half_a_frame(family), tmp_path / family)
    assert main(plan_words(media / source, model, store)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "one frame takes" in line and "chunk_seconds" not in line


CAPTIONED = (
    "cogvlm2",
    "llava",
    "llava_next",
    "llava_next_video",
    "paligemma",
    "smolvlm",
    "video_llava",
)
"""Families whose context a few dozens of small frames exceed."""
SHRUNK = [param for param in FAMILIES if param.values[0] in CAPTIONED]
HEAVY = "paligemma"
"""A family whose attention has no kernel: a chunk of 7,000 tokens takes minutes of a busy core."""


def place_of(family: str, folder: Path, source: Path) -> Place:
    model = str(published_checkpoint(family))
    return Place(clips=source, out=folder / "out", store=folder / "store", model=model)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_caption_of_pictures_alone_captions_each(family: str, media: Path, tmp_path: Path) -> None:
    place = place_of(family, tmp_path, media / "pictures")
    run = run_inside(place, max_new_tokens=4)
    assert not run.result.failures and not lost_frames(run.said.splitlines())
    assert [row["frames"] for row in place.captions()] == [[0.0], [0.0]]


@pytest.mark.slow
@pytest.mark.parametrize(
    "family",
    [
        pytest.param(HEAVY, marks=pytest.mark.slow) if param.values[0] == HEAVY else param
        for param in SHRUNK
    ],
)
def test_caption_shows_as_many_frames_of_a_chunk_as_the_context_holds(
    family: str, media: Path, tmp_path: Path
) -> None:
    both = shutil.copytree(media / "pictures", tmp_path / "both")
    write_video(both / "z.mp4", ticks=range(120), size=SMALL)
    place = place_of(family, tmp_path, both)
    run = run_inside(place, frames=100, max_new_tokens=4, prompt=PROMPT)
    assert not run.result.failures and len(lost_frames(run.said.splitlines())) == 1
    first, second, chunk = place.captions()
    assert first["frames"] == second["frames"] == [0.0]
    frames = len(chunk["frames"])
    most = expected_frames(family, 24 if family == "cogvlm2" else 100, SMALL)
    assert (int(0.7 * most) if family in TILED else most) <= frames <= most
    assert prompt_tokens(family, frames, SMALL) + ANSWER <= PUBLISHED[family].context


@pytest.mark.slow
@pytest.mark.parametrize("family", SHRUNK)
def test_caption_refuses_a_frame_that_exceeds_the_context(
    family: str, media: Path, tmp_path: Path
) -> None:
    model = with_context(family, half_a_frame(family), tmp_path / family)
    place = replace(place_of(family, tmp_path, media / "both"), model=str(model))
    launcher = InsideLauncher()
    with pytest.raises(UsageError, match="one frame takes") as error:
        run_through(launcher, place)
    assert error.value.exit_code == 2 and launcher.started == ["describe"]


@pytest.mark.slow
@pytest.mark.parametrize("family", SHRUNK)
def test_caption_of_pictures_that_exceed_the_context_fails_each(
    family: str, media: Path, tmp_path: Path
) -> None:
    model = with_context(family, half_a_frame(family), tmp_path / family)
    place = replace(place_of(family, tmp_path, media / "pictures"), model=str(model))
    run = run_inside(place, max_new_tokens=4)
    assert [failure["error"] for failure in place.failures()] == ["too-long"] * 2
    assert not lost_frames(run.said.splitlines())


def test_prompt_overhead_counts_the_marks_of_a_large_frame() -> None:
    """A token stands for 28 by 28 pixels, and each row of them ends with a mark."""
    processor = pixtral_processor(PUBLISHED["mistral3"])
    _, per_frame = prompt_overhead(processor, "video")
    assert per_frame == math.ceil(1280 / 28)
    assert prompt_overhead(processor, "image")[1] == 0
