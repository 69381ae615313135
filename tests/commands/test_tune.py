"""`penstock tune`: the loss falls by every route, a training that is killed goes on to the same
bytes, and what it left is read back, reported, and never trained over unasked."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from artifacts.errors import ControlWord, EnvironmentFault, UsageError
from flows.commands.learn.learn_command import _show
from flows.commands.tune.report import MAX_POINTS
from flows.commands.tune.result import (
    RUN,
    AdapterScore,
    TrainingFound,
    Tuned,
    refuse_other_recipe,
    training_in,
    tuned_in,
)
from flows.commands.tune.run import tune
from flows.commands.tune.training_data import Example
from flows.core.console.display import Display
from flows.core.machine.launch import DirectLauncher
from flows.core.options.commands import CaptionConfig
from flows.core.options.training import LearnConfig, RecordedRun, TuneConfig
from flows.interfaces.cli.main import main
from penstock_demo import CHECKPOINT
from penstock_demo.clips import write_clips
from stages.models.adapter_modules import ADAPTER_WEIGHTS
from stages.tune import RECORD, STAGE
from stages.tune.training import Trainer, TrainingExample
from tests.support.browser import Browser
from tests.support.checkpoints import whole_checkpoint
from tests.support.clips import profile_of
from tests.support.commands import completed
from tests.support.inside import InsideLauncher, run_inside
from tests.support.media import write_numbered
from tests.support.omni import OMNI, omni_checkpoint
from tests.support.pipeline import PENSTOCK, ROOT, Place
from tests.support.reports import write_run
from tests.support.starving import STARVED, VARIABLE

CLIPS, CLIP = 6, "clip-01.mp4"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Clips with captions of another style beside them."""
    place = tmp_path_factory.mktemp("tune")
    for truth in write_clips(place / "clips", CLIPS, 3):
        words = truth.caption.lower().rstrip(".").split()
        (place / "clips" / truth.file).with_suffix(".txt").write_text("tags: " + ", ".join(words))
    return place


def answer_to(place: Path, out: str, *more: str, data: Path | None = None) -> list[str]:
    where = ["--model", "demo", "--out", str(place / out), "--store", str(place / "store")]
    return ["tune", str(data or place / "clips"), *where, "--batch-size", "4", *more]


def record(place: Path, out: str) -> Any:
    return json.loads((place / out / "tune.json").read_text())


def config_in(place: Path, data: Path, **options: Any) -> TuneConfig:
    given = {"model": "demo", "store": str(place / "store"), "out": str(place / "adapter")}
    return TuneConfig(data=str(data), **{**given, **options})


def tune_inside(config: TuneConfig) -> Tuned | AdapterScore:
    return tune(config, Display(quiet=True), lambda listen: InsideLauncher(listen=listen))


def test_a_caption_that_the_token_limit_cut_is_trained_without_an_end_token(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (place / "cut").mkdir()
    rows = [
        {"path": f"../clips/clip-0{at}.mp4", "caption": f"a caption of film {at}", "ended": ended}
        for at, ended in enumerate(("length", "stop"), 1)
    ]
    data = place / "cut" / "data.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    taught: dict[str, list[int]] = {}

    def step(_: Trainer, examples: list[TrainingExample], __: float, ___: int) -> float:
        taught.update({each.caption: each.ids.tolist() for each in examples})
        return 1.0

    monkeypatch.setattr(Trainer, "step", step)
    out = str(place / "cut" / "adapter")
    tune_inside(config_in(place, data, out=out, steps=1, validate=0))
    end = record(place, "cut/adapter")["end_token"]
    ends = [taught[row["caption"]][-1] == end for row in rows]
    assert ends == [False, True], "which captions are trained with an end"


@pytest.mark.slow
def test_an_adapter_of_another_base_is_used_with_one_warning(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter = place / "based"
    assert main(answer_to(place, "based", "--steps", "1")) == 0
    models = {"same": "other README", "other": "other weights"}
    for name in models:
        shutil.copytree(CHECKPOINT, tmp_path / name)
    (tmp_path / "same" / "README.md").write_text("another README")
    shard = next((tmp_path / "other").glob("*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-1] + b"\1")
    warned = {}
    for name, what in models.items():
        words = ["caption", str(place / "clips" / CLIP), "--model", str(tmp_path / name)]
        words += ["--store", str(tmp_path / "store"), "--adapter", str(adapter)]
        words += ["--max-new-tokens", "2"]
        capsys.readouterr()
        assert main([*words, "--out", str(tmp_path / "out")]) == 0
        printed = " ".join("".join(capsys.readouterr()).split())
        warned[what] = printed.count(f"{adapter} was trained on {CHECKPOINT}, and the weights of ")
    assert warned == {"other README": 0, "other weights": 1}


@pytest.mark.slow
def test_the_loss_falls_and_the_adapter_is_as_peft_writes_it(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = answer_to(place, "first", "--steps", "8", "--lr", "5e-3", "--validate", "0.3")
    assert main(command) == 0
    printed = capsys.readouterr().out.strip()
    assert printed.startswith("8 steps: loss ") and f"adapter in {place / 'first'}" in printed
    assert printed.endswith(f"--adapter {place / 'first'} --store {place / 'store'}`")
    found = record(place, "first")
    assert (found["examples"], found["held_out"], found["steps"]) == (4, 2, 8)
    assert found["losses"][-1] < 0.8 * found["losses"][0]
    assert [score["step"] for score in found["scores"]] == [0, found["best_step"]]
    from peft import PeftConfig
    from safetensors.torch import load_file

    config = PeftConfig.from_pretrained(str(place / "first"))
    assert (config.peft_type, config.r) == ("LORA", 16)
    weights = place / "first" / "adapter_model.safetensors"
    numbers = load_file(weights)
    assert all(name.startswith("base_model.model.") for name in numbers)
    assert any(bool(value.any()) for name, value in numbers.items() if "lora_B" in name)
    assert not any("vision" in name or "visual" in name for name in numbers)
    before = weights.stat().st_mtime_ns
    assert main(command) == 0
    assert weights.stat().st_mtime_ns == before


@pytest.mark.slow
def test_a_training_that_is_killed_goes_on_to_the_same_bytes(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["--steps", "64", "--precision", "fp32", "--validate", "0.3", "--lr", "2e-3"]
    assert main(answer_to(place, "whole", *more)) == 0
    checkpoint = place / "killed" / "checkpoint.safetensors"
    for after in (2.9, None, 5.4, None):
        _killed(answer_to(place, "killed", *more), checkpoint, after)
    done = len(record(place, "killed")["losses"])
    capsys.readouterr()
    assert main(answer_to(place, "killed", *more)) == 0
    to_do = f"tuning: {64 - done} steps to do, {done} already done"
    assert done and to_do in capsys.readouterr().err
    whole, killed = (place / name / "adapter_model.safetensors" for name in ("whole", "killed"))
    assert whole.read_bytes() == killed.read_bytes()
    assert record(place, "whole")["losses"] == record(place, "killed")["losses"]


def _killed(command: list[str], checkpoint: Path, after: float | None) -> None:
    """Run a training for so many seconds, or else until a checkpoint appears that was not there,
    and kill it."""
    before = checkpoint.stat().st_mtime_ns if checkpoint.exists() else 0
    process = subprocess.Popen(
        [*PENSTOCK, *command], cwd=ROOT, start_new_session=True, stdout=subprocess.DEVNULL
    )
    if after is not None:
        time.sleep(after)
    until = time.monotonic() + 200
    while after is None and (not checkpoint.exists() or checkpoint.stat().st_mtime_ns == before):
        assert time.monotonic() < until and process.poll() is None
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({}, "none.mp4: no such file (1 of 1 media are missing)"),
        *(
            pytest.param(row, says, marks=pytest.mark.slow)
            for row, says in (
                ({"path": CLIP, "start": 3.0, "end": 4.0}, "matches the caption's start and end"),
                ({"features": "f" * 64}, "none.mp4: no stored features of demo"),
                ({"path": CLIP, "prompt": "<|video_pad|>?"}, "an image placeholder of demo"),
                ({"path": CLIP, "caption": "a <|video_pad|>"}, "data.jsonl: line 1 holds <|video"),
            )
        ),
        (
            {"path": CLIP, "caption": "a cat <|im_end|> on a sofa"},
            "data.jsonl: line 1 holds <|im_end|>, a control token of demo, which no caption keeps",
        ),
    ],
)
def test_what_cannot_be_learned_from_is_told_in_one_line(
    place: Path, capsys: pytest.CaptureFixture[str], row: dict[str, Any], says: str
) -> None:
    data = place / "clips" / "data.jsonl"
    data.write_text(json.dumps({"path": "none.mp4", "caption": "a", **row}))
    command = answer_to(place, "wrong", "--validate", "0", "--quiet", data=data)
    assert main(command) == 2
    printed = capsys.readouterr().err.strip().splitlines()
    assert says in printed[-1] and not any("Traceback" in line for line in printed)


@pytest.mark.parametrize("stored", [False, True])
def test_a_dry_run_refuses_captions_that_the_command_refuses(
    place: Path, capsys: pytest.CaptureFixture[str], stored: bool
) -> None:
    data = place / "clips" / "dry.jsonl"
    known = {"path": "gone.mp4", "features": "f" * 64} if stored else {"path": CLIP}
    data.write_text(json.dumps({**known, "caption": "a cat <|im_end|> on a sofa"}))
    command = answer_to(place, "dry", "--validate", "0", "--quiet", data=data)
    for more in ([], ["--dry-run"]):
        assert main([*command, *more]) == 2, more
        assert "dry.jsonl: line 1 holds <|im_end|>, a control token" in capsys.readouterr().err


@pytest.mark.slow
def test_a_dry_run_of_learn_refuses_captions_that_the_round_refuses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    where = {"out": str(tmp_path), "store": str(tmp_path / "store")}
    recorded = RecordedRun(config=CaptionConfig(sources=("videos",), model="demo", **where))  # type: ignore[arg-type]
    config = LearnConfig(out=str(tmp_path))
    run = recorded.tuning(config, tmp_path / "run", 8)
    wrong = Example(path=Path(CLIP), caption="a cat <|im_end|>", line=3)
    monkeypatch.setattr("flows.commands.learn.run.preview", lambda *_: ([], run, [wrong]))
    with pytest.raises(ControlWord, match=r"line 3 holds <\|im_end\|>, a control token of demo"):
        _show(config, recorded, as_json=False)


@pytest.mark.slow
def test_what_runs_out_of_memory_goes_on_a_rung_lower(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """First fewer examples at once, which the process does by itself; then layers computed again,
    in another one. The losses are those of a training that had room."""
    options = {"precision": "fp32", "steps": 8, "batch_size": 4, "validate": 0.3}
    config = config_in(place, place / "clips", out=str(place / "tight"), **options)
    roomy = tune(replace(config, out=str(place / "roomy")), Display(quiet=True))
    monkeypatch.setenv(VARIABLE, json.dumps({"tune": {"rows": 1, "again": True}}))
    tight = tune(config, Display(quiet=True), lambda listen: DirectLauncher(listen, STARVED))
    values = json.loads((place / "tight" / "run" / "run.json").read_text())
    names = [rung["name"] for rung in values["rungs"] if rung["stage"] == "tune"]
    assert names == ["batch 2, fp32", "batch 1, fp32", "batch 1, fp32, gradient checkpointing"]
    assert isinstance(roomy, Tuned) and isinstance(tight, Tuned)
    assert tight.record.losses == pytest.approx(roomy.record.losses, rel=1e-3)


@pytest.mark.slow
def test_the_parent_imports_no_model_library() -> None:
    code = "import sys, flows.commands.tune.run; print(*sys.modules)"
    done = completed([sys.executable, "-c", code])
    assert done.returncode == 0 and not {"torch", "peft"} & {*done.stdout.split()}, done.stderr


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
def test_the_process_that_trains_opens_no_clip_and_loads_no_tower(
    place: Path, tmp_path: Path
) -> None:
    """Its processes are told from others by what they write; the tower's tensors are in the same
    file as the others, so it is asked what it holds, too."""
    command = answer_to(place, "traced", "--steps", "2", "--validate", "0", "--quiet")
    assert main(command) == 0  # by now all is encoded
    shutil.rmtree(place / "traced")
    trace = ["strace", "-ff", "-qq", "-e", "trace=openat,rename", "-o", str(tmp_path / "opened")]
    subprocess.run([*trace, *PENSTOCK, *command], cwd=ROOT, check=True)
    messages = {path: path.read_text(errors="replace") for path in tmp_path.glob("opened.*")}
    trained = [text for text in messages.values() if "adapter_model.safetensors" in text]
    assert trained
    opened = [line for text in trained for line in text.splitlines() if "ENOENT" not in line]
    assert not [line for line in opened if ".mp4" in line or "/frames/" in line]
    assert [line for line in opened if "/features/" in line]
    held = profile_of(CHECKPOINT).language.parameters
    assert record(place, "traced")["frozen_parameters"] == held


@pytest.fixture
def numbered(tmp_path: Path) -> Place:
    clips = write_numbered(tmp_path / "clips", 4)
    return Place(clips=clips, out=tmp_path / "out", store=tmp_path / "store")


def captions(place: Place, **options: Any) -> list[str]:
    run_inside(place, max_new_tokens=8, language_precision="fp32", **options)
    return [caption["caption"] for caption in place.captions()]


def tuned(place: Place, *, validate_only: bool = False) -> Tuned | AdapterScore:
    data = place.out.with_name("data.jsonl")
    rows = [{"file_name": f"clips/{at}.png", "text": "red, blue"} for at in range(4)]
    data.write_text("\n".join(map(json.dumps, rows)))
    options = {"steps": 24, "lr": 2e-2, "precision": "fp32", "validate": 0.0, "batch_size": 4}
    options |= {"model": place.model, "max_new_tokens": 8, "validate_only": validate_only}
    return tune_inside(config_in(place.out.parent, data, **options))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "route"),
    [
        ("gemma3", "protocol"),
        ("llama4", "protocol"),
        ("perception_lm", "protocol"),
        ("florence2", "replay"),
        ("blip_2", "splice"),
    ],
)
def test_the_loss_falls_and_captions_change(numbered: Place, family: str, route: str) -> None:
    place = replace(numbered, model=str(whole_checkpoint(family)))
    plain = captions(place)
    assert json.loads((place.out / "run.json").read_text())["plan"]["route"] == route
    found = tuned(place)
    assert isinstance(found, Tuned)
    losses = found.record.losses
    assert losses[-1] < 0.7 * losses[0]
    assert captions(place, adapter=str(place.out.with_name("adapter"))) != plain
    scored = tuned(place, validate_only=True)
    assert isinstance(scored, AdapterScore) and scored.score.loss < losses[0]


@pytest.mark.slow
@pytest.mark.parametrize(("file", "sound"), [("tone.mp4", "off"), ("numbered/0.png", "")])
def test_the_record_of_a_model_that_hears_says_that_clips_had_no_sound(
    tmp_path: Path, file: str, sound: str
) -> None:
    write_numbered(tmp_path / "numbered", 1)
    shutil.copy(Path(__file__).parents[1] / "data/tone.mp4", tmp_path)
    (tmp_path / "data.jsonl").write_text(json.dumps({"file_name": file, "text": "a tone"}))
    options = {"model": str(omni_checkpoint(OMNI[0])), "max_new_tokens": 8, "steps": 1}
    tune_inside(config_in(tmp_path, tmp_path / "data.jsonl", validate=0.0, **options))
    assert record(tmp_path, "adapter")["sound"] == sound


@pytest.mark.slow
def test_what_is_run_whole_is_refused_with_the_reason(numbered: Place) -> None:
    with pytest.raises(UsageError, match="joint") as caught:
        tuned(replace(numbered, model=str(whole_checkpoint("mllama"))))
    assert "\n" not in str(caught.value)


SAMPLE = {"said": "a red dog", "right": "tags: red, dog"}
SCORE = {"exact": 0.0, "words": 0.2, "loss": 3.0, "samples": [SAMPLE]}
RECIPE: dict[str, Any] = {"data": "d", "model": "m", "rank": 16, "steps": 4, "rate": 1e-3}
TUNED = {
    "recipe": RECIPE,
    "finished": True,
    "steps": 4,
    "examples": 8,
    "held_out": 2,
    "losses": [3.0, 2.0, 1.0, 0.5],
    "memory_bytes": [1 << 30] * 4,
    "held_out_losses": [[2, 1.5], [4, 0.7]],
    "best_step": 4,
    "scores": [{"step": 0, **SCORE}, {"step": 4, **SCORE, "exact": 0.5}],
}


def folder(place: Path, **changes: Any) -> Path:
    (place / RECORD).write_text(json.dumps({**TUNED, **changes}))
    (place / ADAPTER_WEIGHTS).write_bytes(b"")
    return place


@pytest.mark.parametrize("wrong", [{"losses": "none"}, {"steps": -1}, {"scores": [{"step": 0}]}])
def test_what_somebody_changed_is_told_in_one_line(tmp_path: Path, wrong: dict[str, Any]) -> None:
    with pytest.raises(EnvironmentFault) as caught:
        tuned_in(folder(tmp_path, **wrong))
    assert RECORD in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "says"),
    [({"rank": 8}, "(--lora-rank)"), ({"data": "e", "rate": 0.1}, "(the captions, --lr)")],
)
def test_adapters_are_not_trained_over(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    folder(tmp_path)
    refuse_other_recipe(tmp_path, RECIPE, resume=False)
    refuse_other_recipe(tmp_path, {**RECIPE, **changes}, resume=True)
    with pytest.raises(UsageError) as caught:
        refuse_other_recipe(tmp_path, {**RECIPE, **changes}, resume=False)
    assert says in str(caught.value) and "--resume" in str(caught.value)


def test_an_adapter_from_elsewhere_is_not_either(tmp_path: Path) -> None:
    refuse_other_recipe(tmp_path, RECIPE, resume=False)
    (tmp_path / ADAPTER_WEIGHTS).write_bytes(b"")
    with pytest.raises(UsageError, match="has no training record"):
        refuse_other_recipe(tmp_path, RECIPE, resume=False)


def facts_of(place: Path) -> Any:
    training = training_in(place)
    assert isinstance(training, TrainingFound)
    return training.sections()["training"]


def test_the_report_has_curves_and_what_is_said_before_and_after(tmp_path: Path) -> None:
    assert training_in(tmp_path) is None
    message = facts_of(folder(tmp_path))
    losses, memory = message["curves"]
    assert [one["name"] for one in losses["series"]] == ["trained on", "held out"]
    assert losses["series"][0]["points"][0] == [1, 3.0]
    assert memory["series"][0]["points"][-1] == [4, 1.0]
    assert message["rows"] == [("tags: red, dog", "a red dog", "a red dog")]


def test_of_many_steps_as_many_are_drawn_as_show(tmp_path: Path) -> None:
    many = 5 * MAX_POINTS + 1
    losses = [float(at) for at in range(many)]
    message = facts_of(folder(tmp_path, losses=losses, memory_bytes=[1] * many))
    points = message["curves"][0]["series"][0]["points"]
    assert len(points) <= MAX_POINTS + 1 and points[-1] == [many, many - 1.0]


EVIL = "<img src=x onerror=\"document.title='run'\">"


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """A folder of a training whose model says markup."""
    score = {**SCORE, "samples": [{**SAMPLE, "said": EVIL}]}
    folder(tmp_path, scores=[{"step": 0, **score}, {"step": 4, **score}])
    write_run(tmp_path / RUN, []).write(force=True)
    (tmp_path / RUN / "logs").mkdir()
    (tmp_path / RUN / "logs" / f"{STAGE.name}.log").touch()
    return tmp_path


@pytest.mark.browser
def test_curves_and_samples_are_drawn_and_nothing_is_run(browser: Browser, adapter: Path) -> None:
    assert main(["report", str(adapter)]) == 0
    browser.open((adapter / "report.html").as_uri())
    browser.wait("return document.documentElement.dataset.ready")
    assert browser.console() == []
    curves = browser.run("return document.querySelectorAll('#training path.curve').length")
    assert curves == 3, "losses of what is trained on and held out, and memory"
    shown = browser.run("return document.querySelector('#training table').innerText")
    assert EVIL in shown and "tags: red, dog" in shown
    assert browser.run("return document.title") != "run"
    assert browser.run("return document.documentElement.scrollWidth <= innerWidth")


def test_status_says_how_it_stands(adapter: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", str(adapter)]) == 0
    assert capsys.readouterr().out.startswith("4 steps: loss 3.000 to 0.500")
    assert main(["status", str(adapter), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["training"]["steps"] == 4
    (adapter / RECORD).unlink()
    assert main(["status", str(adapter)]) == 0
    assert capsys.readouterr().out.startswith("no step is finished yet")


@pytest.mark.slow
def test_a_caption_is_not_trained_on_another_picture_of_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The features are gone, or in another store, and the file now holds another picture."""
    monkeypatch.chdir(tmp_path)
    for name, level in (("a.png", 20), ("b.png", 200)):
        Image.new("RGB", (64, 48), (level, 90, 40)).save(tmp_path / name)
    store = ["--store", str(tmp_path / "store")]
    assert main(["caption", "a.png", "b.png", "--model", "demo", "--out", "out", *store]) == 0
    tune = ["tune", "out/captions.jsonl", "--model", "demo", "--out", "new", "--steps", "1"]
    other = ["--store", str(tmp_path / "other"), "--quiet"]
    Image.new("RGB", (64, 48), (1, 190, 240)).save(tmp_path / "a.png")
    capsys.readouterr()
    assert main([*tune, *other]) == 2
    assert "a.png" in (error := capsys.readouterr().err) and "holds other content" in error
    assert not Path("new/adapter_config.json").exists()
    assert main([*tune, *store, "--quiet"]) == 0  # of the features of then
