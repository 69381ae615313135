"""Whole models as published: Penstock's captions are those of the release of transformers that the
weights were published with, installed beside and asked by one joint `generate` a case."""

import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from flows.machine.launch import StageCall
from stages.summarize.job import SUMMARY
from stages.summarize.packing import TimedText
from tests.support.clips import joint_model
from tests.support.first_releases import RELEASES, Medium, Question, answers, build, release
from tests.support.inside import Ended, InsideLauncher, Ran, run_through
from tests.support.media import picture, write_video
from tests.support.pipeline import Place, read_lines
from tests.support.tiny_families.in_slots import float32_depends_on_rows
from tests.support.whole_model import frames_of, media_of, turn

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),  # two processes import another release, and one model runs five times
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]
TOKENS = 8
PROMPTS = {"what": "What happens in it?", "who": "Who?"}
SIDES = {"qwen2_vl": (308, 336), "qwen2_5_vl": (308, 336), "qwen3_vl": (288, 352)}
"""Height and width that no release resizes: whole tokens, and as many pixels as the authors' script
gives a frame at the least. The ways of resizing differ by what is documented."""
RATES = {"qwen2_vl": 2.0, "qwen2_5_vl": 1.0, "qwen3_vl": 2.0}
ROUNDED = {"qwen2_5_vl"}
"""Families without slots in float32 on a processor whose products depend on their rows."""
SHORT = 4
LONG = {"qwen2_vl": 14, "qwen2_5_vl": 10, "qwen3_vl": 6}
"""Seconds of the two videos; of the longer one of Qwen2-VL and Qwen2.5-VL the time is longer than
its sides."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Scene:
    """A family's checkpoint as its release wrote it, and media for it."""

    family: str
    model: Path
    clips: Path
    folder: Path

    def place(self, name: str) -> Place:
        """Return where a run of its own reads and writes."""
        folder = self.folder / name
        return Place(
            clips=self.clips, out=folder / "out", store=folder / "store", model=str(self.model)
        )


@pytest.fixture(scope="module", params=RELEASES)
def scene(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Scene:
    """A picture, a short and a long video."""
    family = request.param
    if reason := release(RELEASES[family])[1]:
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp(family)
    clips = folder / "clips"
    clips.mkdir()
    high, wide = SIDES[family]
    Image.fromarray(picture(7, high, wide)).save(clips / "a.png")
    for name, seconds in (("b-short", SHORT), ("c-long", LONG[family])):
        write_video(clips / f"{name}.mp4", ticks=range(0, 30 * seconds, 15), size=(high, wide))
    build(family, folder / "model")
    return Scene(family=family, model=folder / "model", clips=clips, folder=folder)


@dataclass(kw_only=True, slots=True)
class Changing(InsideLauncher):
    """Changes what stages are told, as a run does that has little memory."""

    changes: dict[str, dict[str, Any]]
    """Stage -> arguments."""

    def start(self, call: StageCall) -> Ended:
        changes = self.changes.get(call.name, {})
        job = replace(call.job, **{n: new for n, new in changes.items() if n != "half"})
        if half := changes.get("half"):
            held: Any = job
            job = replace(job, half=replace(held.half, **half))
        return InsideLauncher.start(self, replace(call, job=job))


STREAMED: dict[str, dict[str, Any]] = {
    "encode": {"half": {"offload": True}, "block": 2},
    "decode": {"half": {"offload": True}},
    "summarize": {"half": {"offload": True}},
}
"""Layers wait in the files of the checkpoint."""
IN_PIECES: dict[str, dict[str, Any]] = {"decode": {"prefill": 300}}
"""Prompts are read 300 tokens at once."""


def run(scene: Scene, place: Place, launcher: InsideLauncher | None = None, **options: Any) -> Ran:
    asked: dict[str, Any] = {
        "fps": RATES[scene.family],
        "max_new_tokens": TOKENS,
        "prompts": PROMPTS,
    }
    asked |= {"keep_frames": True, **options}
    ran = run_through(launcher or InsideLauncher(), place, **asked)
    assert not ran.result.failures
    return ran


def captions(place: Place) -> list[str]:
    return [row["caption"] for row in place.captions()]


def summaries(place: Place) -> list[str]:
    return [row["summary"] for row in read_lines(place.out / "summaries.jsonl")]


def questions(place: Place) -> list[Question]:
    """What the captions of a run answer, with the frames that the run stored."""
    found = []
    for row, (meta, pixels) in zip(place.captions(), frames_of(place), strict=True):
        medium = Medium(frames=pixels, fps=rate(meta) if row["start"] != row["end"] else None)
        found.append(Question(prompt=row["prompt"], media=(medium,), max_new_tokens=TOKENS))
    return found


def rate(meta: dict[str, Any]) -> float:
    first, *_, last = meta["times"]
    return float((len(meta["times"]) - 1) / (last - first))


def summary_questions(place: Place) -> list[Question]:
    """What the summaries of a run answer: the captions of one chunk under the first prompt."""
    first = next(iter(PROMPTS))
    found = []
    for summary in read_lines(place.out / "summaries.jsonl"):
        rows = [
            row
            for row in place.captions()
            if (row["media_path"], row["name"]) == (summary["media_path"], first)
        ]
        lines = [TimedText(row["start"], row["end"], row["caption"]).line for row in rows]
        prompt = "\n".join([SUMMARY, "", *lines])
        found.append(Question(prompt=prompt, max_new_tokens=TOKENS))
    return found


def test_every_way_of_running_says_what_the_first_release_says(scene: Scene) -> None:
    first = scene.place("transformers")
    ran = run(scene, first, engine="transformers", summary=True)
    asked, told = questions(first), summary_questions(first)
    assert [len(q.media[0].frames) for q in asked[::2]] == [
        1,
        *(int(seconds * RATES[scene.family]) for seconds in (SHORT, LONG[scene.family])),
    ]
    texts = answers(scene.family, scene.model, [*asked, *told])
    assert (captions(first), summaries(first)) == (texts[: len(asked)], texts[len(asked) :])
    assert len(told) == 2 and len({*texts}) > len(texts) // 2
    assert all(len(text) == TOKENS for text in texts), "a sign is a token"
    assert "published" in ran.said

    if not (scene.family in ROUNDED and float32_depends_on_rows()):
        check_slots(scene, first)
    streamed = scene.place("streamed")
    run(scene, streamed, Changing(changes=STREAMED), engine="transformers", summary=True)
    assert (captions(streamed), summaries(streamed)) == (captions(first), summaries(first))
    stages = streamed.stages()
    assert all(stages[name]["notes"]["bytes_fetched_a_pass"] for name in ("encode", "decode"))


def check_slots(scene: Scene, first: Place) -> None:
    """Check that slots, and a prompt in pieces, give the captions of the first run."""
    slots = scene.place("inflight")
    shutil.copytree(first.store, slots.store)
    shutil.rmtree(slots.store / "captions")
    assert run(scene, slots, engine="inflight").started == ["decode"]
    assert slots.stages()["decode"]["notes"]["engine"] == "inflight-shared"
    assert captions(slots) == captions(first)
    shutil.rmtree(slots.store / "captions")
    run(scene, slots, engine="inflight", prompts={}, prompt=PROMPTS["what"])
    assert slots.stages()["decode"]["notes"]["engine"] == "inflight"
    assert captions(slots) == captions(first)[::2]
    shutil.rmtree(slots.store / "captions")
    pieces = Changing(changes=IN_PIECES)
    run(scene, slots, pieces, engine="transformers", prompts={}, prompt=PROMPTS["what"])
    assert slots.stages()["decode"]["notes"]["prefill_way"] == "generate"
    assert captions(slots) == captions(first)[::2]


def test_as_stock_is_what_the_installed_transformers_says(scene: Scene) -> None:
    place = scene.place("transformers")
    run(scene, place, engine="transformers", summary=True)
    published, names = captions(place), [row["media_path"] for row in place.captions()]
    assert run(scene, place, engine="transformers", as_published=False).started[-1:] == ["decode"]
    stock = captions(place)
    assert stock == installed_says(scene, place)
    changed = {name for name, a, b in zip(names, stock, published, strict=True) if a != b}
    assert "c-long.mp4" in changed and "a.png" not in changed
    assert ("b-short.mp4" in changed) == (scene.family == "qwen3_vl")
    again = run(scene, place, engine="transformers", as_published=True)
    assert {*again.started} <= {"describe"} and captions(place) == published


def installed_says(scene: Scene, place: Place) -> list[str]:
    """What the whole model says by the installed release, one joint `generate` a caption."""
    from transformers import AutoProcessor

    processor: Any = AutoProcessor.from_pretrained(scene.model)
    found = []
    for row, frames in zip(place.captions(), frames_of(place), strict=True):
        kind = "image" if row["start"] == row["end"] else "video"
        inputs = processor(
            text=[turn(processor, kind, row["prompt"])],
            return_tensors="pt",
            **media_of(kind, [frames]),
        )
        with torch.inference_mode():
            made = joint_model(scene.model).generate(
                **inputs, do_sample=False, max_new_tokens=TOKENS
            )
        found.append(processor.tokenizer.decode(made[0, inputs["input_ids"].shape[1] :]))
    return found
