"""`penstock plan --train`."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from flows.cli.main import main
from tests.support.plan_cases import make_folder, plan_case


def test_fine_tuning_is_told_with_the_sum_first(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["plan", "--model", "demo", "--train", "full", "--gpus", "2", "--zero", "2"]
    assert main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("fine-tuning demo: ")
    assert "of each of 2 GPUs" in lines[0]
    assert "with --checkpointing" in lines[1]
    assert any(line.split()[0] == "logits" for line in lines if line)


def test_the_terms_make_the_sum(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["plan", "--model", "demo", "--train", "lora", "--batch-size", "4", "--json"]
    assert main(arguments) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["training"]["batch"] == 4
    moments = ("always", told["moment"])
    summed = sum(term["bytes"] for term in told["terms"] if term["moment"] in moments)
    assert told["peak_bytes"] == summed
    assert {"part", "bytes", "why", "source", "moment"} == set(told["terms"][0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--train", "half"], "--train half is not known"),
        (["--train", "full", "--zero", "4"], "--zero 4 is not known"),
        (["--train", "full", "--gpus", "0"], "--gpus is 0"),
        (["--train", "full", "--batch-size", "0"], "--batch-size is 0"),
        (["--train", "lora", "--optimizer", "8bit"], "adapters in 32 bit"),
        (["--train", "full", "--precision", "nf4"], "--precision is given with --train"),
        (["--zero", "2"], "--zero is given, and no --train"),
        (["--checkpointing"], "--checkpointing is given, and no --train"),
    ],
)
def test_options_that_make_no_sense_fail(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", "--model", "demo", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_zero_on_one_gpu_is_said_and_not_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--model", "demo", "--train", "full", "--zero", "2"]) == 0
    assert "it saves nothing" in capsys.readouterr().out


def test_what_does_not_fit_names_what_would(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = str(make_folder(replace(plan_case("llava-1.5-7b-hf"), processor=None), tmp_path))
    arguments = ["plan", "--model", folder, "--train", "full", "--memory", "24GiB"]
    assert main(arguments) == 3
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "does not fit into 24.00 GiB"
    assert "--zero 3 --gpus 8 --checkpointing (then " in lines[1]
    assert "--train lora --checkpointing (then " in lines[1]
    for option in ("--zero 3 --gpus 8 --checkpointing", "--train lora --checkpointing"):
        given = ["plan", "--model", folder, "--train", "full", "--memory", "24GiB"]
        assert main([*given, *option.split()]) == 0  # the last one given counts
        assert capsys.readouterr().out.splitlines()[0] == "fits into 24.00 GiB"
