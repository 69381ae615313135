"""A checkpoint of an older transformers is run as published, in captions, adapters and exports;
what was recorded before goes on as stock. Captions of whole models are those of the first
release."""

import json
import os
import re
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from flows.core.checkpoint.adapters import adapter_notes, as_published_by
from flows.core.machine.launch import StageCall
from flows.interfaces.cli.main import main
from flows.outputs.record.run_record import RUN_RECORD
from penstock_demo import CHECKPOINT
from penstock_demo.clips import write_clips
from stages.models.adapter_modules import ADAPTER_WEIGHTS, LoraAdapter
from stages.models.hub.checkpoint import Checkpoint
from stages.models.published import FIELD
from stages.summarize import SUMMARY, TimedText
from tests.support.first_releases import RELEASES, Medium, Question, answers, build, release
from tests.support.inside import Ended, InsideLauncher, Ran, run_inside, run_through
from tests.support.media import picture, write_video
from tests.support.pipeline import Place, place_below, read_lines
from tests.support.tiny_families.in_slots import float32_depends_on_rows
from tests.support.whole_model import frames_of

CLIPS = 2
OTHERWISE = "is computed as its published code does"
SILENT = "does not record whether it was made as published, so it runs as stock"


@pytest.fixture(scope="module")
def older(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo as if transformers 4.49 had saved it."""
    made: Path = shutil.copytree(CHECKPOINT, tmp_path_factory.mktemp("older") / "model")
    config = (made / "config.json").read_text()
    assert '"transformers_version": "5.23.0"' in config
    (made / "config.json").write_text(config.replace("5.23.0", "4.49.0"))
    for path in made.iterdir():  # a plan trusts digests of files that are not new
        os.utime(path, (path.stat().st_atime, path.stat().st_mtime - 3600))
    return made


@pytest.fixture
def place(older: Path, tmp_path: Path) -> Place:
    write_clips(tmp_path / "clips", CLIPS, 7)
    return place_below(tmp_path, model=older)


def way_of(place: Place) -> bool:
    return bool(json.loads((place.out / RUN_RECORD).read_text())["plan"]["as_published"])


def stating(model: Path, folder: Path, way: bool) -> str:
    """Copy a checkpoint into a folder, and write by hand how it is run."""
    made: Path = shutil.copytree(model, folder)
    config = json.loads((made / "config.json").read_text())
    (made / "config.json").write_text(json.dumps({**config, FIELD: way}))
    return str(made)


@pytest.mark.slow
def test_config_json_says_how_a_model_runs_and_its_release_only_where_it_does_not(
    place: Place, tmp_path: Path
) -> None:
    def run(model: str) -> Ran:
        return run_inside(replace(place, model=model), fps=2.0, max_new_tokens=8)

    ruled = run(place.model)
    assert way_of(place) and OTHERWISE in ruled.said
    published = place.captions()
    stock = run(stating(Path(place.model), tmp_path / "stock", way=False))
    assert not way_of(place) and OTHERWISE not in stock.said
    before = place.captions()
    half = before[0]["precision"]["language"]
    assert {row["precision"]["language"] for row in published} == {f"{half} as published"}
    run(stating(CHECKPOINT, tmp_path / "merged", way=True))  # of the installed release
    assert way_of(place)
    assert [row["caption"] for row in place.captions()] == [row["caption"] for row in published]


def test_an_adapter_goes_before_config_json_and_that_before_the_release(
    place: Place, tmp_path: Path
) -> None:
    """An adapter that says nothing counts as stock, unless config.json says how it is."""
    older, merged = Path(place.model), Path(stating(CHECKPOINT, tmp_path / "merged", way=True))
    parts: dict[str, Any] = {"base": "", "transposed": False, "places": {}, "low_rank": {}}
    silent, text, denied = (
        LoraAdapter(folder=tmp_path, as_published=way, **parts) for way in (None, True, False)
    )
    assert as_published_by(None, older) is as_published_by(None, merged) is None
    assert [as_published_by(each, older) for each in (silent, text, denied)] == [False, True, False]
    assert [as_published_by(each, merged) for each in (silent, text, denied)] == [None, True, False]

    def notes(adapter: LoraAdapter, folder: Path) -> list[str]:
        return adapter_notes(adapter, Checkpoint(name="m", folder=folder), {})

    (note,) = notes(silent, older)
    assert SILENT in note and f'"{FIELD}": true in {older / "config.json"}' in note
    assert not notes(silent, merged) and not notes(denied, older)
    assert not notes(silent, CHECKPOINT), "it is run as stock anyway"


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_an_adapter_says_which_way_it_was_trained_and_one_that_does_not_is_stock(
    place: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for clip, text in zip(sorted(place.clips.glob("*.mp4")), ("one", "two"), strict=True):
        clip.with_suffix(".txt").write_text(text)
    words = ["tune", str(place.clips), "--store", str(place.store), "--steps", "2"]
    stock = stating(Path(place.model), tmp_path / "stock", way=False)
    for name, model, way in (("a", place.model, "true"), ("b", stock, "false")):
        out = tmp_path / name
        assert main([*words, "--model", model, "--out", str(out)]) == 0
        with safe_open(out / ADAPTER_WEIGHTS, "pt") as file:
            assert file.metadata()[FIELD] == way
        for clip in place.clips.glob("*.txt"):
            clip.rename(tmp_path / clip.name)
        run_inside(place, adapter=str(out))
        assert way_of(place) is (way == "true")
        for own in tmp_path.glob("*.txt"):
            own.rename(place.clips / own.name)
    silent: Path = shutil.copytree(tmp_path / "a", tmp_path / "silent")
    (silent / "tune.json").unlink()
    save_file(load_file(silent / ADAPTER_WEIGHTS), silent / ADAPTER_WEIGHTS)
    ran = run_inside(place, adapter=str(silent))
    assert not way_of(place) and f"{silent} {SILENT}" in ran.said
    capsys.readouterr()
    # A training that goes on with such an adapter goes on as stock.
    assert main([*words, "--model", place.model, "--out", str(silent), "--resume"]) == 0
    assert f"{silent} {SILENT}" in re.sub(r"\s+", " ", capsys.readouterr().err)
    with safe_open(silent / ADAPTER_WEIGHTS, "pt") as file:
        assert file.metadata()[FIELD] == "false"


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_an_export_says_which_way_its_model_is_run(place: Place, tmp_path: Path) -> None:
    out = tmp_path / "made"
    words = ["export", place.model, "--to", "nf4", "--out", str(out), "--samples", "2", "--accept"]
    words += ["--calibrate", str(place.clips), "--store", str(place.store)]
    assert main(words) == 0
    config = json.loads((out / "config.json").read_text())
    assert config[FIELD] is True and config["transformers_version"] == "4.49.0"
    run_inside(replace(place, model=str(out)))
    assert way_of(place)


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
    folder: Path

    def place(self, name: str) -> Place:
        """Return where a run of its own reads and writes."""
        return place_below(self.folder / name, self.folder / "clips", self.folder / "model")


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
    return Scene(family=family, folder=folder)


@dataclass(kw_only=True, slots=True)
class Changing(InsideLauncher):
    """Changes arguments of stages, as a run with little memory does."""

    changes: dict[str, dict[str, Any]]
    """Stage -> arguments."""

    def start(self, call: StageCall) -> Ended:
        changes = self.changes.get(call.name, {})
        job = replace(call.job, **{n: new for n, new in changes.items() if n != "half"})
        if half := changes.get("half"):
            held: Any = job
            job = replace(job, half=replace(held.half, **half))
        return InsideLauncher.start(self, replace(call, job=job))


OFFLOADED: dict[str, Any] = {"half": {"offload": True}}
STREAMED = {"encode": {**OFFLOADED, "block": 2}, "decode": OFFLOADED, "summarize": OFFLOADED}
"""Layers wait in the files of the checkpoint."""
IN_PIECES: dict[str, dict[str, Any]] = {"decode": {"prefill": 300}}
"""Prompts are read 300 tokens at once."""


def run(scene: Scene, place: Place, launcher: InsideLauncher | None = None, **options: Any) -> Ran:
    requests: dict[str, Any] = {"fps": RATES[scene.family], "max_new_tokens": TOKENS}
    requests |= {"prompts": PROMPTS, "keep_frames": True, **options}
    ran = run_through(launcher or InsideLauncher(), place, **requests)
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
        times, moves = meta["times"], row["start"] != row["end"]
        rate = (len(times) - 1) / (times[-1] - times[0]) if moves else None
        medium = Medium(frames=pixels, fps=rate)
        found.append(Question(prompt=row["prompt"], media=(medium,), max_new_tokens=TOKENS))
    return found


def summary_questions(place: Place) -> list[Question]:
    """What the summaries of a run answer: the captions of one chunk under the first prompt."""
    first = next(iter(PROMPTS))
    found = []
    for summary in read_lines(place.out / "summaries.jsonl"):
        of = (summary["media_path"], first)
        rows = [row for row in place.captions() if (row["media_path"], row["name"]) == of]
        lines = [TimedText(row["start"], row["end"], row["caption"]).line for row in rows]
        prompt = "\n".join([SUMMARY, "", *lines])
        found.append(Question(prompt=prompt, max_new_tokens=TOKENS))
    return found


@pytest.mark.slow
@pytest.mark.timeout(900)  # two processes import another release, and one model runs five times
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_every_way_of_running_says_what_the_first_release_says(scene: Scene) -> None:
    first = scene.place("transformers")
    ran = run(scene, first, engine="transformers", summary=True)
    request, message = questions(first), summary_questions(first)
    frames = [int(seconds * RATES[scene.family]) for seconds in (SHORT, LONG[scene.family])]
    assert [len(q.media[0].frames) for q in request[::2]] == [1, *frames]
    texts = answers(scene.family, scene.folder / "model", [*request, *message])
    assert (captions(first), summaries(first)) == (texts[: len(request)], texts[len(request) :])
    assert len(message) == 2 and len({*texts}) > len(texts) // 2
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
