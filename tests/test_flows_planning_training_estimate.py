"""What fine-tuning takes, against hand arithmetic and what was reported elsewhere, and how
`penstock plan --train` tells it."""

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


@cache
def text_alone() -> Architecture:
    """Qwen2.5-7B: the language half of Qwen2.5-VL-7B, number by number."""
    case = plan_case("qwen2.5-vl-7b-instruct")
    tensors = {n: s for n, s in case.tensors.items() if not n.startswith("visual.")}
    return read(
        PlanCase(
            name="Qwen/Qwen2.5-7B-Instruct",
            source=case.source,
            parameters=LANGUAGE,
            dtype=case.dtype,
            processor=None,
            config={k: v for k, v in case.config.items() if k != "vision_config"},
            tensors=tensors,
        )
    )


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
    assert found.peak_bytes == pytest.approx(119.3 * GIB, rel=0.005)


def test_without_recomputation_each_layer_keeps_all_it_made() -> None:
    found = qwen(method="full")
    norms = 2 * (4 + 2) * 3584 + 8
    attention = 2 * (3584 + 3584 + 512 + 512 + 3584) + 4 * 28
    mlp = 2 * (3584 + 4 * 18944)
    assert part(found, "activations") == 28 * 2048 * (norms + attention + mlp)
    assert qwen(method="full", batch=4).peak_bytes > found.peak_bytes + 3 * 12 * GIB


def test_76_gib_are_met_by_moments_in_16_bit_and_a_step_that_is_not_fused() -> None:
    """ms-swift's examples/train/full/train.sh says 76GiB of Qwen2.5-7B on one GPU, in bfloat16
    without DeepSpeed: 8 bytes a parameter, and 2 more in torch's step."""
    given = Training(method="full", checkpointing=True, optimizer="bf16")
    found = train_estimate(text_alone(), given)
    assert found.moment == "step"
    assert found.bytes_at("step") + found.bytes_at("always") > 10 * LANGUAGE  # 70.9 GiB
    assert found.peak_bytes == pytest.approx(76 * GIB, rel=0.07)
    mixed = Training(method="full", checkpointing=True)
    assert train_estimate(text_alone(), mixed).peak_bytes > 80 * GIB  # so it was not those


@pytest.mark.parametrize(
    ("script", "reported", "method"),
    [("lora_sft.sh", 22, "lora"), ("qlora/bnb/train.sh", 10, "qlora")],
)
def test_adapters_take_what_ms_swift_says(script: str, reported: float, method: Any) -> None:
    """Of Qwen2.5-7B, with recomputation, at most 2048 tokens a sample."""
    found = train_estimate(text_alone(), Training(method=method, checkpointing=True))
    assert found.peak_bytes == pytest.approx(reported * GIB, rel=0.15), script


def test_a_lora_of_qwen2_5_vl_takes_about_22_gib() -> None:
    """ms-swift's examples/train/multimodal/caption.sh."""
    found = qwen(method="lora", checkpointing=True)
    each = 2 * (3584 + 3584) + 2 * (3584 + 512) + 3 * (3584 + 18944)
    assert found.trained == 28 * 8 * each == 20_185_088
    assert found.peak_bytes == pytest.approx(22 * GIB, rel=0.08)


def test_6_gb_of_qlora_are_its_weights_and_little_else() -> None:
    """What is reported of 7B models leaves no room for a step over many words."""
    found = qwen(method="qlora", checkpointing=True)
    packed = 28 * LAYER
    others = LANGUAGE - packed
    weights = int(packed * 4.126953125 / 8) + 2 * (others + VISION)
    assert part(found, "weights") == weights + 4 * found.trained
    assert weights == pytest.approx(6.9e9, rel=0.01)
    language = weights - 2 * VISION
    assert language == pytest.approx(5.55e9, rel=0.01)
    short = qwen(method="qlora", checkpointing=True, length=512)
    assert 8 * GIB < short.peak_bytes < 9 * GIB
    assert found.peak_bytes == pytest.approx(11.4 * GIB, rel=0.01)


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


def test_zero_on_one_gpu_is_said_to_save_nothing() -> None:
    alone = qwen(method="full", zero=3)
    assert alone.peak_bytes == qwen(method="full").peak_bytes
    assert any("single GPU" in note for note in alone.notes)


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


def test_zero_on_one_gpu_is_said_and_not_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--model", "demo", "--train", "full", "--zero", "2"]) == 0
    assert "saves nothing" in capsys.readouterr().out


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
