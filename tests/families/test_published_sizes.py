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


class Plan:
    """Calls `plan` with one of the media and a model."""

    def __init__(self, media: Path, store: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self._media, self._store, self._capsys = media, store, capsys

    def ended(self, source: str, model: Path, *more: str) -> tuple[int, str, str]:
        """The exit code and what is printed on either stream."""
        words = ["plan", str(self._media / source), "--model", str(model), "--prompt", PROMPT]
        code = main([*words, "--store", str(self._store), *MEMORY, "--json", *more])
        return (code, *self._capsys.readouterr())

    def __call__(self, source: str, model: Path, *more: str) -> Any:
        code, output, errors = self.ended(source, model, *more)
        assert code == 0, errors
        return json.loads(output)


@pytest.fixture
def plan(media: Path, store: Path, capsys: pytest.CaptureFixture[str]) -> Plan:
    return Plan(media, store, capsys)


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
def test_plan_of_pictures_alone_speaks_of_no_chunk(family: str, plan: Plan) -> None:
    for more in ((), ("--frames", "32")):
        found = plan("pictures", published_checkpoint(family), *more)
        assert (found["files"], found["frames"]) == (2, 2)
        assert not lost_frames(found["notes"])


@pytest.mark.in_turn
@pytest.mark.parametrize("source", ["video", "both"])
@pytest.mark.parametrize("family", FAMILIES)
def test_plan_of_frames_that_fit_speaks_of_no_context(family: str, source: str, plan: Plan) -> None:
    found = plan(source, published_checkpoint(family), "--whole", "--frames", "1")
    assert found["frames"] == (3 if source == "both" else 1)
    assert not lost_frames(found["notes"])


@pytest.mark.in_turn
@pytest.mark.parametrize("source", ["video", "both"])
@pytest.mark.parametrize("family", LIMITED)
def test_plan_shows_as_many_frames_of_a_chunk_as_the_context_holds(
    family: str, source: str, plan: Plan
) -> None:
    model = published_checkpoint(family)
    found = plan(source, model, "--whole", "--frames", str(MANY))
    frames = found["frames"] - (2 if source == "both" else 0)
    if family in TOGETHER:
        assert frames == MANY and not lost_frames(found["notes"])
        return
    default = plan("video", model)["sampling"]
    most = expected_frames(family, default["max_frames"])
    least = int(0.7 * most) if family in TILED else most - (family in PAIRED)
    assert least <= frames <= most
    (note,) = lost_frames(found["notes"])
    assert f"{frames:,} frame" in note and f"{PUBLISHED[family].context:,} tokens" in note
    assert f"of {MANY:,};" in note


@pytest.mark.slow
@pytest.mark.parametrize("family", LIMITED)
def test_plan_names_a_chunk_or_pixels_with_which_all_frames_fit(family: str, plan: Plan) -> None:
    model = published_checkpoint(family)
    for fps in ("1", "7"):
        given = ["--fps", fps, "--max-frames", str(MANY)]
        notes = lost_frames(plan("video", model, *given)["notes"])
        if notes and (named := re.search(r"(--[\w-]+) ([\d.]+) shows them all", notes[0])):
            found = plan("video", model, *given, *named.groups())
            assert not lost_frames(found["notes"]), notes[0]


def with_half_a_frame(family: str, folder: Path) -> Path:
    """Copy the family's checkpoint, with as many positions as half a frame takes."""
    shutil.copytree(published_checkpoint(family), folder)
    tokens = prompt_tokens(family, 6) - prompt_tokens(family, 2)
    return change_context(folder, tokens // 8)


@pytest.mark.in_turn
@pytest.mark.parametrize("source", ["video", "both"])
@pytest.mark.parametrize("family", LIMITED)
def test_plan_refuses_a_frame_that_exceeds_the_context(
    family: str, source: str, plan: Plan, tmp_path: Path
) -> None:
    code, _, errors = plan.ended(source, with_half_a_frame(family, tmp_path / family))
    assert code == 2
    (line,) = errors.splitlines()
    # Some families make frames smaller first.
    assert re.search("one frame takes|with 1 frame ", line) and "chunk_seconds" not in line


CAPTIONED = (
    *("cogvlm2", "llava", "llava_next", "llava_next_video", "paligemma", "smolvlm"),
    "video_llava",
)
"""Families whose context a few dozens of small frames exceed."""


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
@pytest.mark.parametrize("family", CAPTIONED)
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
@pytest.mark.parametrize("family", CAPTIONED)
def test_caption_refuses_a_frame_that_exceeds_the_context(
    family: str, media: Path, tmp_path: Path
) -> None:
    model = with_half_a_frame(family, tmp_path / family)
    place = replace(place_of(family, tmp_path, media / "both"), model=str(model))
    launcher = InsideLauncher()
    with pytest.raises(UsageError, match="one frame takes") as error:
        run_through(launcher, place)
    assert error.value.exit_code == 2 and launcher.started == ["describe"]


@pytest.mark.slow
@pytest.mark.parametrize("family", CAPTIONED)
def test_caption_of_pictures_that_exceed_the_context_fails_each(
    family: str, media: Path, tmp_path: Path
) -> None:
    model = with_half_a_frame(family, tmp_path / family)
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
