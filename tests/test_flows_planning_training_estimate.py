"""What fine-tuning takes, against hand arithmetic, and how `penstock plan --train` tells it. What
others report stands beside it in docs/memory.md."""

import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from artifacts.errors import UsageError
from flows.cli.main import main
from flows.planning.architecture import Architecture, read_architecture
from flows.planning.training.estimate import train_estimate
from flows.planning.training.terms import TrainEstimate, Training
from stages.models.hub.checkpoint import Checkpoint
from tests.support.plan_cases import PlanCase, kept_folder, make_folder, plan_case

GIB = 1 << 30
LANGUAGE, VISION = 7_615_616_512, 676_550_144
"""Numbers of Qwen2.5-VL-7B's halves."""
LAYER = 2 * 3584 * 3584 + 2 * 512 * 3584 + 3 * 3584 * 18944
"""Numbers of one of its 28 layers that stand in matrices."""


def read(case: PlanCase) -> Architecture:
    folder = kept_folder(case)
    return read_architecture(Checkpoint(name=case.name, folder=folder))


@cache
def architecture(name: str) -> Architecture:
    return read(plan_case(name))


def qwen(**given: Any) -> TrainEstimate:
    return train_estimate(architecture("qwen2.5-vl-7b-instruct"), Training(**given))


def part(found: TrainEstimate, name: str) -> int:
    return sum(term.bytes for term in found.terms if term.part == name)


def test_full_fine_tuning_in_mixed_precision_takes_16_bytes_a_parameter() -> None:
    found = qwen(method="full", checkpointing=True)
    assert (found.trained, found.frozen) == (LANGUAGE, VISION)
    assert part(found, "weights") == 2 * LANGUAGE + 2 * VISION
    assert part(found, "gradients") == 2 * LANGUAGE
    assert part(found, "optimizer") == 12 * LANGUAGE
    # 28 inputs of layers of 3584 numbers; 152,064 words a token, 12 bytes each.
    assert part(found, "activations") == 28 * 3584 * 2 * 2048
    assert part(found, "logits") == 12 * 152_064 * 2048


def test_without_recomputation_each_layer_keeps_all_it_made() -> None:
    found = qwen(method="full")
    norms = 2 * (4 + 2) * 3584 + 8
    attention = 2 * (3584 + 3584 + 512 + 512 + 3584) + 4 * 28
    mlp = 2 * (3584 + 4 * 18944)
    assert part(found, "activations") == 28 * 2048 * (norms + attention + mlp)
    assert qwen(method="full", batch=4).peak_bytes > found.peak_bytes + 3 * 12 * GIB


def test_a_lora_trains_rows_and_columns_of_each_matrix() -> None:
    found = qwen(method="lora", checkpointing=True)
    each = 2 * (3584 + 3584) + 2 * (3584 + 512) + 3 * (3584 + 18944)
    assert found.trained == 28 * 8 * each == 20_185_088


def test_qlora_packs_what_stands_in_matrices_of_the_language_half() -> None:
    found = qwen(method="qlora", checkpointing=True)
    packed = 28 * LAYER
    others = LANGUAGE - packed
    weights = int(packed * 4.126953125 / 8) + 2 * (others + VISION)
    assert part(found, "weights") == weights + 4 * found.trained


@pytest.mark.parametrize(
    ("zero", "weights", "gradients", "optimizer"),
    [(0, 1, 1, 1), (1, 1, 1, 4), (2, 1, 4, 4), (3, 4, 4, 4)],
)
def test_zero_cuts_more_with_each_stage(
    zero: int, weights: int, gradients: int, optimizer: int
) -> None:
    found = qwen(method="full", checkpointing=True, zero=zero, gpus=4)
    assert part(found, "weights") == 2 * LANGUAGE // weights + 2 * VISION // weights
    assert part(found, "gradients") == 2 * LANGUAGE // gradients
    assert part(found, "optimizer") == 12 * LANGUAGE // optimizer
    assert bool(part(found, "gathered")) == (zero > 0)


def test_pictures_that_do_not_fit_into_a_sample_are_said() -> None:
    found = qwen(method="lora", frames=8)
    assert any("--max-length" in note for note in found.notes)


def test_experts_are_said_not_to_be_counted() -> None:
    case = plan_case("qwen2.5-vl-7b-instruct")
    tensors: dict[str, tuple[int, ...]] = {}
    for name, shape in case.tensors.items():
        if ".mlp.up_proj" in name and name.startswith("model."):
            name, shape = name.replace("mlp.", "mlp.experts."), (8, *shape)
        tensors[name] = shape
    found = train_estimate(read(replace(case, tensors=tensors)), Training(method="lora"))
    assert any("experts" in note for note in found.notes)
    assert not qwen(method="lora").notes


def test_a_model_that_writes_nothing_cannot_be_fine_tuned() -> None:
    with pytest.raises(UsageError, match="no language half"):
        train_estimate(architecture("clip-vit-large-patch14"), Training(method="full"))


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
        (["--train", "half"], "unknown --train half"),
        (["--train", "full", "--zero", "4"], "unknown --zero 4"),
        (["--train", "full", "--gpus", "0"], "invalid --gpus 0"),
        (["--train", "full", "--batch-size", "0"], "invalid --batch-size 0"),
        (["--train", "lora", "--optimizer", "8bit"], "adapters in 32 bit"),
        (["--train", "full", "--precision", "nf4"], "--precision and --train exclude each other"),
        (["--zero", "2"], "--zero needs --train"),
        (["--checkpointing"], "--checkpointing needs --train"),
    ],
)
def test_options_that_make_no_sense_fail(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", "--model", "demo", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_zero_on_one_gpu_is_said_to_save_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert qwen(method="full", zero=3).peak_bytes == qwen(method="full").peak_bytes
    assert main(["plan", "--model", "demo", "--train", "full", "--zero", "2"]) == 0
    assert "saves nothing on a single GPU" in capsys.readouterr().out


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
