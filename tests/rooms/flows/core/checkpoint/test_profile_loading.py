import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from artifacts.errors import CannotFit, UsageError
from artifacts.records.keys import ContentDigests
from artifacts.records.store import FolderStore
from flows.core.checkpoint import models, profile_loading
from flows.core.checkpoint.models import open_model
from flows.core.machine.launch import DirectLauncher, StageCall
from flows.core.options.commands import CaptionConfig
from flows.interfaces.cli.main import main
from stages.process.events import EventReporter
from stages.process.job import job_fields
from tests.support.hostile import copy_of_demo

GIB = 1 << 30
MIB = 1 << 20
HERE = Path(__file__)


# What the children of these tests run in place of profile_loading.
def keeps_the_lock(job: dict[str, Any], report: EventReporter) -> None:
    sum(range(1 << 62))  # in C


def doubles(job: dict[str, Any], report: EventReporter) -> None:
    text = "x" * MIB
    while True:
        text += text


def waits(job: dict[str, Any], report: EventReporter) -> None:
    time.sleep(3.5)
    report.note(profile={})


def described(name: str, folder: Path) -> Any:
    """What opening a model comes to whose describing process runs `name`."""
    config = CaptionConfig(sources=("x",), model=str(copy_of_demo(folder / "model")), memory=GIB)
    store = FolderStore(folder / "store")
    launcher = DirectLauncher(lambda *_: None, {"describe": f"{HERE.stem}:{name}"})
    digests = ContentDigests(folder / "digests.jsonl")
    return open_model(config, store=store, digests=digests, launcher=launcher, device="cpu")


@pytest.fixture(autouse=True)
def found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", f"{HERE.parent}:{HERE.parents[5]}")


@pytest.mark.slow
def test_what_takes_too_long_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profile_loading, "MAX_SECONDS", 1.0)
    with pytest.raises(UsageError, match="more than 1 s of CPU time") as caught:
        described("keeps_the_lock", tmp_path)
    assert "\n" not in str(caught.value)
    assert "chat_template.jinja" in caught.value.hint


@pytest.mark.slow
def test_what_takes_too_much_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profile_loading, "MIN_BYTES", 256 * MIB)
    with pytest.raises(UsageError, match=r"more than 1.00 GiB of memory") as caught:
        described("doubles", tmp_path / "a")
    assert "\n" not in str(caught.value)
    # A machine without memory is not the checkpoint's fault.
    monkeypatch.setattr(profile_loading, "host_free_bytes", lambda: 100 * MIB)
    with pytest.raises(CannotFit, match="in the 100 MiB of free memory"):
        described("doubles", tmp_path / "b")


@pytest.mark.slow
def test_waiting_is_no_computing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profile_loading, "MAX_SECONDS", 3.0)
    with pytest.raises(TypeError, match="missing required field"):  # it answered no profile
        described("waits", tmp_path)


def test_describing_may_take_what_a_stage_may_and_never_less_than_it_needs() -> None:
    def config(memory: int | None) -> CaptionConfig:
        return CaptionConfig(sources=("x",), memory=memory)

    assert profile_loading.memory_limit(config(5 * GIB), "cpu") == 5 * GIB
    assert profile_loading.memory_limit(config(1), "cpu") == profile_loading.MIN_BYTES
    assert profile_loading.memory_limit(config(None), "cpu") >= profile_loading.MIN_BYTES
    # Of a GPU's run, `--memory` speaks of the GPU.
    on_gpu = profile_loading.memory_limit(config(1 << 50), "cuda:0")
    assert profile_loading.MIN_BYTES <= on_gpu < 1 << 50


class Refusing:
    """A launcher that notes each call and starts nothing."""

    def __init__(self) -> None:
        self.calls: list[StageCall] = []

    def start(self, call: StageCall) -> Any:
        self.calls.append(call)
        raise UsageError("enough")


def calls_for(model: Path, **options: Any) -> list[StageCall]:
    """The processes that would describe a model for a run with these options."""
    config = CaptionConfig(sources=("x",), model=str(model), **options)
    store, launcher = FolderStore(model.parent / "store"), Refusing()
    digests = ContentDigests(model.parent / "digests.jsonl")
    with pytest.raises(UsageError, match="enough"):
        open_model(config, store=store, digests=digests, launcher=launcher, device="cpu")
    return launcher.calls


def test_every_describing_process_is_told_its_limits(tmp_path: Path) -> None:
    (call,) = calls_for(copy_of_demo(tmp_path / "m"), memory=1)
    limits = (profile_loading.MIN_BYTES, profile_loading.MAX_SECONDS)
    assert (call.budget, call.seconds) == limits


def test_the_way_is_described_apart_only_where_the_rule_gives_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ways(model: Path) -> list[Any]:
        found = []
        for way in (None, False, True):  # as an adapter records it
            monkeypatch.setattr(models, "as_published_by", lambda *_, way=way: way)
            found += [job_fields(call.job)["as_published"] for call in calls_for(model)]
        return found

    model = copy_of_demo(tmp_path / "m")
    assert ways(model) == [None, None, True]
    config = json.loads((model / "config.json").read_text())
    older = {"model_type": "qwen2_vl", "transformers_version": "4.50.0"}
    (model / "config.json").write_text(json.dumps(config | older))
    assert ways(model) == [None, False, True]


@pytest.mark.parametrize("kind", ["fifo", "link to a device"])
@pytest.mark.parametrize(
    "name",
    ["model.safetensors", "x_config.json", "config.json", "tokenizer.json", "chat_template.jinja"],
)
def test_a_part_of_a_model_that_is_no_file_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, kind: str
) -> None:
    folder = copy_of_demo(tmp_path / "model")
    (folder / name).unlink(missing_ok=True)
    if kind == "fifo":
        os.mkfifo(folder / name)
    else:
        (folder / name).symlink_to("/dev/zero")
    assert main(["plan", "--model", str(folder)]) == 5
    what = "a FIFO" if kind == "fifo" else "a device"
    assert f"{folder / name} of the model is {what}, not a file" in capsys.readouterr().err
