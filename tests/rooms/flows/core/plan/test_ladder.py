"""A run whose stages run out of memory goes on a rung lower, and the next one starts there; seen
with stages that answer at once."""

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from artifacts.errors import CannotFit, Interrupted
from artifacts.records.keys import ContentDigests, content_key
from artifacts.records.store import FolderStore
from flows.core.console.display import Display
from flows.core.machine.launch import DirectLauncher, StageCall
from flows.core.options.commands import CaptionConfig
from flows.core.plan.costs import frames as cutting
from flows.core.plan.costs.decode import decode_rungs
from flows.core.plan.costs.encode import encode_rungs
from flows.core.plan.ladder import Ladder, Remembered, Rung
from flows.execution.run import caption
from flows.outputs.record.run_read import load_record
from flows.outputs.run_wording import description_lines
from stages.process.events import BatchShrunk, StageOutcome, TooLarge
from stages.process.job import job_fields
from tests.support.media import write_videos
from tests.support.pipeline import read_lines
from tests.support.stand_ins import config_in, flat
from tests.support.starving import STARVED, VARIABLE
from tests.support.tight import Room, Tight

PICTURES = 2
LONG = "Describe. " * 600
"""More tokens than are read at a time on any rung."""


def picture(folder: Path, number: int) -> None:
    Image.new("RGB", (16, 16), (number, 0, 0)).save(folder / f"{number:02d}.png")


@pytest.fixture
def config(tmp_path: Path) -> CaptionConfig:
    """Pictures, and a model of three files."""
    (tmp_path / "pictures").mkdir()
    for number in range(PICTURES):
        picture(tmp_path / "pictures", number)
    options = {"batch_size": PICTURES, "prompt": LONG, "precision": "auto", "memory": 4 << 30}
    return config_in(tmp_path, tmp_path / "pictures", **options)


@pytest.fixture(autouse=True)
def unsynced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many runs, none of which anybody pulls the plug of."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)


def run(config: CaptionConfig, stages: Tight) -> list[dict[str, Any]]:
    """The lines that were written."""
    caption(config, Display(quiet=True), stages.launcher)
    return read_lines(Path(config.out) / "captions.jsonl")


def record(config: CaptionConfig) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((Path(config.out) / "run.json").read_text())
    return found


@pytest.mark.parametrize(
    "event",
    [
        BatchShrunk(batch=4, failed=8, error="CUDA out of memory"),
        TooLarge(key="a", wanted_bytes=1, error="CUDA out of memory"),
    ],
)
def test_sharing_the_gpu_steps_nothing_down(event: BatchShrunk | TooLarge, tmp_path: Path) -> None:
    rungs = {"encode": [Rung(stage="encode", batch=b) for b in (8, 4, 2, 1)]}
    moves, errors = list[str](), list[str]()
    remembered = Remembered(FolderStore(tmp_path), {"encode": []}, 1 << 30)
    ladder = Ladder(
        rungs, remembered, budget_bytes=1 << 30, on_move=lambda _, text: moves.append(text)
    )
    ladder.begin("encode", errors.append)
    ladder.on_event("encode", event)
    assert (ladder.rung("encode").batch, moves) == (8, [])
    assert errors == ["CUDA out of memory"]
    ladder.begin("encode")
    ladder.on_event("encode", event)
    assert ladder.rung("encode").batch == (4 if isinstance(event, BatchShrunk) else 8)
    assert len(errors) == 1


def reasons(config: CaptionConfig) -> list[tuple[str, str]]:
    return [(taken["stage"], taken["reason"]) for taken in record(config)["rungs"]]


def rung_of(stage: str, values: Mapping[str, Any]) -> Rung:
    """The rung that a stage is on, by what it is told."""
    return Rung(
        stage=stage,
        batch=max(map(len, values["batches"])),
        prefill=values["mlp_chunk"],
        kv=values.get("kv", ""),
        precision=values["precision"],
        offload=values["offload"],
        block=values.get("block", 0),
    )


VARIANTS = [("fp32", ""), ("fp32", "quantized"), ("int8", ""), ("nf4", "")]
LADDERS = {
    "encode": encode_rungs(PICTURES, ["fp32", "int8", "nf4"], streamed=True),
    "decode": decode_rungs(PICTURES, VARIANTS, kv_offload=False, offload=True),
}


def only(stage: str, good: list[Rung]) -> Room:
    """Room on these rungs alone."""

    def room(values: Mapping[str, Any]) -> int:
        here = rung_of(stage, values)
        alike = [rung.batch for rung in good if replace(rung, batch=here.batch) == here]
        return max(alike, default=0)

    return room


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "dies", "each"),
    [
        *(("encode", "kill", 6), ("decode", "raise", 6)),
        *(("encode", "raise", 1), ("decode", "kill", 1), ("decode", "shrink", 1)),
    ],
)
def test_whatever_the_rung_that_fits_the_run_ends_on_it_and_the_next_starts_there(
    config: CaptionConfig, tmp_path: Path, stage: str, dies: str, each: int
) -> None:
    half = "vision" if stage == "encode" else "language"
    for number, fitting in list(enumerate(LADDERS[stage]))[::each]:
        rooms = {stage: only(stage, LADDERS[stage][number:])}
        here = replace(config, store=str(tmp_path / f"store-{number}"))
        lines = run(here, Tight(dies, rooms))
        label = fitting.precision + (" with a quantized KV cache" if fitting.kv else "")
        assert {line["precision"][half] for line in lines} == {label}
        taken = record(here)["rungs"]
        assert len(lines) == PICTURES and bool(taken) == bool(number)
        if taken:
            assert {entry["stage"] for entry in taken} == {stage}
            assert (taken[-1]["rung"], taken[-1]["name"]) == (asdict(fitting), fitting.name)
            assert all(entry["reason"] in ("out of memory", "killed") for entry in taken)
            assert all("memory" in entry["error"] for entry in taken)
        picture(tmp_path / "pictures", 10 + number)
        again = Tight(dies, rooms)
        assert len(run(replace(here, prompt=LONG + "Again."), again)) == PICTURES + 1
        assert again.deaths == 0
        expected = [("remembered", asdict(fitting))] if number else []
        assert [(e["reason"], e["rung"]) for e in record(here)["rungs"]] == expected
        (tmp_path / "pictures" / f"{10 + number}.png").unlink()


def test_a_rung_taken_is_told(config: CaptionConfig, capsys: pytest.CaptureFixture[str]) -> None:
    room = {"decode": only("decode", [r for r in LADDERS["decode"] if r.precision == "int8"])}
    caption(config, Display(), Tight("shrink", room).launcher)
    printed = capsys.readouterr().err
    lower = "batch 1, fp32, prefill chunks of 1024"
    assert f"decode: batch 1, fp32 did not fit in 4.00 GiB; continuing with {lower}" in printed
    assert "decode: batch 2 did not fit in 4.00 GiB; continuing with batch 1" in printed
    other = replace(config, prompt=LONG + "Again.")
    caption(other, Display(), Tight("shrink", room).launcher)
    assert "decode: starting with batch 2, int8: it fitted before" in capsys.readouterr().err
    assert "decode runs with batch 2, int8 (remembered)" in [
        *description_lines(load_record(Path(other.out)))
    ]


@pytest.mark.slow
@pytest.mark.parametrize("dies", ["raise", "kill"])
def test_frames_are_cut_with_fewer_files_at_once(
    config: CaptionConfig, monkeypatch: pytest.MonkeyPatch, dies: str
) -> None:
    monkeypatch.setattr(cutting, "cores", lambda: 4)
    assert len(run(config, Tight(dies, {"frames": lambda values: 1}))) == PICTURES
    names = [entry["name"] for entry in record(config)["rungs"]]
    assert names == ["2 files at once", "1 file at once"]
    picture(Path(config.sources[0]), 9)
    again = Tight(dies, {"frames": lambda values: 1})
    assert len(run(config, again)) == PICTURES + 1
    assert (again.deaths, reasons(config)) == (0, [("frames", "remembered")])


def dying(rooms: Iterator[int]) -> Room:
    """These rooms, one after the other, and then room for everything."""
    return lambda values: next(rooms, 10**9)


@pytest.mark.slow
def test_a_death_that_is_not_of_memory_keeps_the_rung(config: CaptionConfig) -> None:
    for stage in ("encode", "decode"):
        stages = Tight("murder", {stage: dying(iter((0, 0)))})
        assert len(run(replace(config, store=f"{config.store}-{stage}"), stages)) == PICTURES
        assert (stages.deaths, record(config)["rungs"]) == (2, [])
        messages = [job_fields(call.job)["batches"] for call in stages.calls if call.name == stage]
        assert len(messages) == 3 and messages[0] == messages[1] == messages[2]


def test_who_cannot_hold_the_weights_tries_lighter_ones_at_once(config: CaptionConfig) -> None:
    light = {"decode": lambda values: 8 if values["precision"] == "nf4" else -1}
    run(config, Tight("raise", light))
    names = [entry["name"] for entry in record(config)["rungs"]]
    assert names == [f"batch {PICTURES}, int8", f"batch {PICTURES}, nf4"]


@pytest.mark.in_turn
@pytest.mark.parametrize("stage", ["encode", "decode"])
@pytest.mark.parametrize("precision", ["native", "int8"])
def test_words_change_with_leave_alone(config: CaptionConfig, stage: str, precision: str) -> None:
    stages = Tight("raise", {stage: lambda values: 0})
    half = {"encode": "vision_precision", "decode": "language_precision"}[stage]
    requests: dict[str, Any] = {"precision": "auto", half: precision}
    with pytest.raises(CannotFit, match=f"the {stage} stage does not fit in 4.00 GiB") as raised:
        run(replace(config, **requests), stages)
    assert raised.value.exit_code == 3
    assert "--memory" in raised.value.hint and "-precision auto" in raised.value.hint
    calls = [flat(call) for call in stages.calls if call.name == stage]
    assert {values["precision"] for values in calls} == {"int8" if precision == "int8" else "fp32"}
    streamed = [values for values in calls if values["offload"]]
    assert all(values["block"] for values in streamed)
    assert len(calls) - len(streamed) == 4
    # Layers that come one after the other change no words; of quantized ones that cannot be had.
    assert len(streamed) == (8 if stage == "encode" and precision != "int8" else 0)
    assert record(config)["state"] == "failed"


@pytest.mark.in_turn
@pytest.mark.parametrize("stage", ["encode", "decode"])
def test_an_item_that_fits_on_no_rung_fails_alone(config: CaptionConfig, stage: str) -> None:
    stages = Tight("raise", {stage: lambda message: 8}, giant=stage)
    result = caption(config, Display(quiet=True), stages.launcher)
    assert (result.captions, result.exit_code) == (PICTURES - 1, 1)
    (failure,) = result.failures
    assert (failure.stage, failure.error) == (stage, "memory")
    assert "2,048 MiB more were requested" in failure.message and "--memory" in failure.hint
    alone = [taken for taken in record(config)["rungs"] if taken["reason"] == "item alone"]
    tried = {(r.precision, r.prefill, r.offload) for r in LADDERS[stage]}
    rungs = [Rung(**taken["rung"]) for taken in alone]
    assert {(r.precision, r.prefill, r.offload) for r in rungs} == tried
    assert {rung.batch for rung in rungs} == {1}
    roomy = Tight("raise", {})
    result = caption(config, Display(quiet=True), roomy.launcher)
    assert (result.captions, result.failures, record(config)["rungs"]) == (PICTURES, [], [])


def test_when_every_item_is_too_large_the_run_does_not_fit(config: CaptionConfig) -> None:
    (Path(config.sources[0]) / "00.png").unlink()
    stages = Tight("raise", {"decode": lambda message: 8}, giant="decode")
    with pytest.raises(CannotFit, match="the decode stage does not fit"):
        run(config, stages)


def test_an_item_alone_on_a_lower_rung_says_its_own_precision(config: CaptionConfig) -> None:
    class Once(Tight):
        """The giant fits quantized."""

        def _work(self, call: StageCall, outcome: StageOutcome) -> StageOutcome:
            self.giant = "decode" if job_fields(call.job)["half"]["precision"] == "fp32" else ""
            return super()._work(call, outcome)

    lines = run(config, Once("raise", {"decode": lambda message: 8}))
    assert sorted(line["precision"]["language"] for line in lines) == ["fp32", "int8"]
    again = Tight("raise", {})
    assert run(config, again) == lines
    assert again.names() == []


@pytest.mark.slow
def test_an_interrupted_run_makes_nothing_twice(config: CaptionConfig, tmp_path: Path) -> None:
    for number in range(PICTURES, 8):
        picture(tmp_path / "pictures", number)
    rooms = {"decode": only("decode", [r for r in LADDERS["decode"] if r.precision != "fp32"])}

    class Stopped(Tight):
        def _answer(self, call: StageCall, outcome: StageOutcome) -> StageOutcome:
            if call.name == "decode" and outcome.items >= 4:
                raise Interrupted("stopped")
            return super()._answer(call, outcome)

    with pytest.raises(Interrupted):
        run(config, Stopped("raise", rooms))
    assert len(read_lines(tmp_path / "out" / "captions.jsonl")) == 4
    again = Tight("raise", rooms)
    lines = run(config, again)
    assert {line["precision"]["language"] for line in lines} == {"int8"}
    assert (again.deaths, len(lines), reasons(config)) == (0, 8, [("decode", "remembered")])
    assert len([key for batch in again.batches("decode") for key in batch]) == 4
    # With more memory, and so a better rung: what is finished is finished.
    roomy = Tight("raise", {})
    assert run(replace(config, memory=64 << 30), roomy) == lines
    assert roomy.names() == []
    # Whoever wants better words says so, and has both.
    native = run(replace(config, precision="native"), Tight("raise", {}))
    assert {line["precision"]["language"] for line in native} == {"fp32"}
    assert {line["precision"]["language"] for line in run(config, roomy)} == {"fp32"}


@pytest.mark.slow
def test_features_of_both_precisions_are_read(config: CaptionConfig, tmp_path: Path) -> None:
    for number in range(PICTURES, 4):
        picture(tmp_path / "pictures", number)
    made: list[str] = []

    class Midway(Tight):
        """In full precision one batch goes through, and then none."""

        def _answer(self, call: StageCall, outcome: StageOutcome) -> StageOutcome:
            if call.name == "encode" and job_fields(call.job)["half"]["precision"] == "fp32":
                if made:
                    self._die(call, outcome)
                made.append(call.name)
            return super()._answer(call, outcome)

    stages = Midway("raise", {"encode": lambda message: 8})
    lines = run(config, stages)
    assert sorted(line["precision"]["vision"] for line in lines) == ["fp32", "fp32", "int8", "int8"]
    assert stages.names() == ["frames", *["encode"] * 13, *["decode"] * 2]
    again = Tight("raise", {})
    assert run(config, again) == lines and again.names() == []


class RealFrames(Tight):
    """Frames are cut by a real process, which is hungry."""

    def start(self, call: StageCall) -> Any:
        if call.name != "frames":
            return super().start(call)
        self.calls.append(call)
        return DirectLauncher(self._listen, STARVED).start(call)


@pytest.mark.slow
def test_a_file_too_large_for_the_frames_stage_fails_alone(
    config: CaptionConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(cutting, "cores", lambda: 2)
    clips = write_videos(tmp_path / "clips", 2)
    here = replace(config, sources=(str(clips),))
    giant = content_key(ContentDigests(tmp_path / "digests").of(clips / "1.mp4"), "video")
    monkeypatch.setenv(VARIABLE, json.dumps({"frames": {"room": 1, "giants": [giant]}}))
    result = caption(here, Display(quiet=True), RealFrames("raise", {}).launcher)
    assert (result.captions, result.exit_code) == (1, 1)
    (failure,) = result.failures
    assert (failure.media_path, failure.stage, failure.error) == ("1.mp4", "frames", "memory")
    assert [entry["name"] for entry in record(here)["rungs"]] == ["1 file at once"]
    monkeypatch.delenv(VARIABLE)
    result = caption(here, Display(quiet=True), RealFrames("raise", {}).launcher)
    assert (result.captions, result.failures) == (2, [])
