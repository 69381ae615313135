"""The benchmark of budgets makes the model that it says, and passes nothing that does not hold."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks import _llava, memory
from benchmarks._common import MIB
from benchmarks._llava import SEVEN_B, TINY, build, config_of, shapes_of
from benchmarks._plan_cases import plan_case
from benchmarks._words import hf
from benchmarks.memory import Trial, judge_auto, judge_native, judge_nf4, read_trial
from stages.models.inspection import describe
from tests.support.reports import media_file, said, write_run

KNOWN: dict[str, Any] = {"name": "first", "precision": "auto", "budget": 300 * MIB}
KNOWN |= {"code": 0, "seconds": 1.0, "exit_report": ""}
SHRUNK = {"stage": "decode", "name": "batch 2", "reason": "planned"}
FELL = {"stage": "decode", "name": "batch 1", "reason": "out of memory"}


def caption(number: int, language: str = "bf16") -> dict[str, Any]:
    return {"media_path": f"{number}.mp4", "precision": {"vision": "bf16", "language": language}}


GOOD = Trial(
    **KNOWN,
    rungs=(SHRUNK, FELL),
    peaks={"encode": 100 * MIB, "decode": 299 * MIB},
    captions=(caption(1), caption(2)),
)
AGAIN = replace(GOOD, rungs=({**FELL, "reason": "remembered"},), peaks={"decode": 200 * MIB})


def test_the_large_model_has_the_tensors_of_the_published_one() -> None:
    published = plan_case("llava-1.5-7b-hf").tensors
    assert shapes_of(config_of(SEVEN_B)) == published


def test_a_model_is_written_in_files_of_one_half_each_and_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_llava, "SHARD_BYTES", 17 * MIB)
    folder = build(tmp_path / "model", TINY, 2)
    files = sorted(folder.glob("*.safetensors"))
    assert len(files) > 3
    assert all(path.stat().st_size < 18 * MIB for path in files)
    index = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    halves = {(place, name.startswith("language_model.")) for name, place in index.items()}
    assert len(halves) == len(files)
    _, found = hf.LlavaForConditionalGeneration.from_pretrained(folder, output_loading_info=True)
    assert not any(found.values())
    profile = describe(folder)
    assert profile.route == "protocol"
    assert profile.language.stored_bytes > 50 * MIB > 10 * MIB > profile.vision.stored_bytes
    words = hf.AutoProcessor.from_pretrained(folder).tokenizer
    assert words.decode([5, 31999, 32063]) == " w5 w31999 w32063"


def test_a_run_is_read_from_what_it_left_and_one_that_left_nothing_too(tmp_path: Path) -> None:
    files = [media_file(tmp_path / name) for name in ("a.mp4", "b.mp4")]
    out = tmp_path / "out"
    record = write_run(out, [(file, said(file, ["yes"])) for file in files])
    record.value["rungs"] = [SHRUNK, FELL]
    for name, taken in (("encode", 100), ("decode", 299)):
        entry = record.stage(name)
        entry.update(peak_host_bytes=(taken + 400) * MIB, notes={"loaded_bytes": 400 * MIB})
    record.write(force=True)
    trial = read_trial(out, **KNOWN)
    assert (trial.rungs, trial.peaks) == (GOOD.rungs, GOOD.peaks)
    assert trial.complete(2) and not trial.complete(3)
    assert trial.failed_rungs == 1
    refused = read_trial(tmp_path / "nowhere", **KNOWN)
    assert (refused.rungs, refused.peaks, refused.captions) == ((), {}, ())


def holds(first: Trial, again: Trial) -> list[bool]:
    return [check.holds for check in judge_auto(first, again, 2)]


def test_a_run_under_auto_has_to_be_complete_within_its_budget_and_remembered() -> None:
    assert holds(GOOD, AGAIN) == [True, True, True]
    silent = replace(GOOD, captions=(caption(1), {"media_path": "2.mp4", "precision": {}}))
    for lacking in (replace(GOOD, captions=GOOD.captions[:1]), replace(GOOD, code=1), silent):
        assert holds(lacking, AGAIN) == [False, True, True]
    for over in ({"encode": 1, "decode": 304 * MIB}, {"decode": 1}):
        assert holds(replace(GOOD, peaks=over), AGAIN) == [True, False, True]
    for other in (replace(AGAIN, rungs=()), replace(AGAIN, rungs=GOOD.rungs)):
        assert holds(GOOD, other) == [True, True, False]


def test_a_native_run_is_complete_in_its_own_precision_or_says_what_would_fit() -> None:
    assert judge_native(GOOD, 2).holds
    assert not judge_native(replace(GOOD, captions=(caption(1), caption(2, "nf4"))), 2).holds
    assert not judge_native(replace(GOOD, budget=290 * MIB), 2).holds
    refused = replace(GOOD, code=3, captions=(), exit_report="too large. Give --precision auto")
    assert judge_native(refused, 2).holds
    assert not judge_native(replace(refused, exit_report="too large"), 2).holds
    assert not judge_native(replace(refused, code=1), 2).holds
    assert not judge_nf4(GOOD, 2).holds
    assert judge_nf4(replace(GOOD, captions=(caption(1, "nf4"), caption(2, "nf4"))), 2).holds


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_it_runs_on_a_tiny_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    few = ["--device", "cpu", "--shape", "tiny", "--clips", "8", "--folder", str(tmp_path)]
    code = memory.main([*few, "--skip", "nf4"])
    told = capsys.readouterr().out
    assert code == 0, told
    assert "| NO |" not in told
    assert told.count("| yes |") == 9
