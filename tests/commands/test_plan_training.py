"""What a layer keeps for its backward pass, counted on real layers of transformers; what fine-
tuning takes, against hand arithmetic, and how `penstock plan --train` tells it."""

import json
import weakref
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from artifacts.errors import UsageError
from flows.commands.plan.training.architecture import (
    Architecture,
    Transformer,
    attention_of,
    mlp_of,
    read_architecture,
    stacks_of,
)
from flows.commands.plan.training.estimate import (
    LOGITS,
    adapted_layer_bytes,
    layer_bytes,
    lora_layer_bytes,
    lora_parameters,
    train_estimate,
)
from flows.commands.plan.training.terms import TrainEstimate, Training
from flows.interfaces.cli.main import main
from stages.models.hub.checkpoint import Checkpoint
from stages.models.hub.headers import Header
from tests.support.builders.plan_cases import PlanCase, kept_folder, make_folder, plan_case
from tests.support.builders.words import hf
from tests.support.quantized import write_headers

WIDTH, INSIDE, HEADS, TOKENS = 128, 320, 4, 96
FEW, MANY = 2, 4
"""Layers; what they differ by is what a layer keeps, and not what surrounds them."""


def kept_a_layer(make: Callable[[int], Any], rows: int, **inputs: Any) -> float:
    """Bytes of a row that a layer keeps for its backward pass, weights not."""
    few, many = (kept_bytes(make(layers), inputs) for layers in (FEW, MANY))
    return (many - few) / (MANY - FEW) / rows


def kept_bytes(model: Any, inputs: dict[str, Any]) -> int:
    own = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    held: dict[int, Any] = {}

    def pack(tensor: Any) -> Any:
        if tensor.untyped_storage().data_ptr() not in own:
            held[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(**inputs)
    return sum(tensor.untyped_storage().nbytes() for tensor in held.values())


def read_transformer(model: Any) -> Transformer:
    stack = stacks_of(
        Header(name, "", "BF16", tuple(weight.shape), 2 * weight.numel())
        for name, weight in model.named_parameters()
    )[0]
    (query_width, key_width), (mlp_width, is_gated) = attention_of(stack), mlp_of(stack)
    read: dict[str, Any] = {name: getattr(stack, name) for name in ("path", "layers", "width")}
    read |= {"query_width": query_width, "key_width": key_width, "shifts": stack.shifts}
    read |= {"mlp_width": mlp_width, "is_gated": is_gated, "heads": HEADS, "kind": "text"}
    matrices = tuple(stack.matrices.values())
    return Transformer(matrices=matrices, linear_parameters=0, parameters=0, **read)


def sizes(layers: int, attention: str, inside: int = INSIDE) -> dict[str, Any]:
    sizes = {"hidden_size": WIDTH, "intermediate_size": inside, "num_hidden_layers": layers}
    return {**sizes, "num_attention_heads": HEADS, "attn_implementation": attention}


def decoder(layers: int, attention: str, keys: int) -> Any:
    config = hf.Qwen2Config(**sizes(layers, attention), num_key_value_heads=keys, vocab_size=64)
    return hf.Qwen2Model(config).to(torch.bfloat16).train()


def encoder(layers: int, attention: str, inside: int = INSIDE) -> Any:
    image = {"image_size": 64, "patch_size": 8, "hidden_act": "gelu"}
    config = hf.CLIPVisionConfig(**sizes(layers, attention, inside), **image)
    return hf.CLIPVisionModel(config).to(torch.bfloat16).train()


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("keys", [HEADS, 2])
def test_a_gated_layer_keeps_to_the_byte_what_is_told_of_it(attention: str, keys: int) -> None:
    embedded = torch.randn(2, TOKENS, WIDTH, dtype=torch.bfloat16)
    found = kept_a_layer(lambda n: decoder(n, attention, keys), 2, inputs_embeds=embedded)
    tower = read_transformer(decoder(FEW, attention, keys))
    assert found == TOKENS * layer_bytes(tower, TOKENS, fused=attention == "sdpa")


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_layer_of_a_vision_tower_too(attention: str) -> None:
    pixels = torch.randn(3, 3, 64, 64, dtype=torch.bfloat16)
    tokens = 8 * 8 + 1
    found = kept_a_layer(lambda n: encoder(n, attention), 3, pixel_values=pixels)
    tower = read_transformer(encoder(FEW, attention))
    assert found == tokens * layer_bytes(tower, tokens, fused=attention == "sdpa")


def test_with_dropout_and_a_plain_mlp_it_is_the_34_of_korthikanti() -> None:
    """sbh(34 + 5as/h), the masks of dropout aside: one of 1 byte after attention and one after the
    MLP; and 5as/h is 2as of the softmax, as of its mask and 2as of what comes out of it."""
    message = layer_bytes(read_transformer(encoder(2, "sdpa", inside=4 * WIDTH)), TOKENS)
    sums = 8 + 4 * HEADS  # of norms and of fused attention
    assert message - sums == (34 - 2) * WIDTH


def with_peft(model: Any, trained: torch.dtype = torch.float32, dropout: float = 0.0) -> Any:
    """As the tune stage trains it, unless told otherwise: adapters in 32 bit, without dropout."""
    from peft import LoraConfig, inject_adapter_in_model

    model.requires_grad_(False)
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    inject_adapter_in_model(LoraConfig(r=8, target_modules=targets, lora_dropout=dropout), model)
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            parameter.data = parameter.data.to(trained)
            parameter.requires_grad_(True)
    return model.train()


def test_a_layer_beside_adapters_keeps_a_copy_for_each() -> None:
    def adapted(layers: int) -> Any:
        return with_peft(decoder(layers, "sdpa", 2), torch.bfloat16, dropout=0.05)

    embedded = torch.randn(2, TOKENS, WIDTH, dtype=torch.bfloat16, requires_grad=True)
    found = kept_a_layer(adapted, 2, inputs_embeds=embedded)
    tower = read_transformer(decoder(FEW, "sdpa", 2))
    # A CPU's mask of dropout takes 2 bytes a number; a GPU's, which is meant, 1.
    masks = sum(columns for _, columns in tower.matrices)
    assert found == TOKENS * (lora_layer_bytes(tower, TOKENS, rank=8) + masks)
    trained = sum(w.numel() for w in adapted(FEW).parameters() if w.requires_grad)
    assert lora_parameters(tower, rank=8) == trained


@pytest.mark.slow
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_tuned_layer_is_told_to_the_byte(dtype: torch.dtype, attention: str) -> None:
    keys = HEADS if (dtype == torch.float32) == (attention == "sdpa") else 2

    def adapted(layers: int) -> Any:
        return with_peft(decoder(layers, attention, keys).to(dtype))

    found = kept_a_layer(adapted, 2, inputs_embeds=torch.randn(2, TOKENS, WIDTH, dtype=dtype))
    tower = read_transformer(decoder(FEW, attention, keys))
    message = adapted_layer_bytes(tower, TOKENS, 8, dtype.itemsize, fused=attention == "sdpa")
    assert found == TOKENS * message


class Living(TorchDispatchMode):
    """Counts the bytes of all tensors that live at once."""

    def __init__(self, model: Any) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.most = 0
        self.known = {weight.untyped_storage()._cdata for weight in model.parameters()}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        tree_map_only(torch.Tensor, self.count, made)
        return made

    def count(self, tensor: Any) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key not in self.known:
            self.known.add(key)
            self.now += size
            self.most = max(self.most, self.now)
            weakref.finalize(storage, self.gone, key, size)

    def gone(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.now -= size


def test_a_large_vocabulary_takes_12_bytes_a_logit_at_once() -> None:
    words, tokens = 30_000, 64
    small = dict.fromkeys(("hidden_size", "intermediate_size"), 16) | {"num_hidden_layers": 1}
    small |= dict.fromkeys(("num_attention_heads", "num_key_value_heads"), 2)
    config = hf.Qwen2Config(**small, vocab_size=words, tie_word_embeddings=False)
    model = hf.Qwen2ForCausalLM(config).to(torch.bfloat16)
    model.lm_head.requires_grad_(False)
    model.model.embed_tokens.requires_grad_(False)
    ids = torch.randint(0, words, (1, tokens))
    living = Living(model)
    with living:
        model(input_ids=ids, labels=ids).loss.backward()
    assert living.most == pytest.approx(sum(LOGITS) * words * tokens, rel=0.01)


GIB = 1 << 30
LANGUAGE, VISION = 7_615_616_512, 676_550_144
"""Numbers of Qwen2.5-VL-7B's halves."""
LAYER = 2 * 3584 * 3584 + 2 * 512 * 3584 + 3 * 3584 * 18944
"""Numbers of one of its 28 layers that stand in matrices."""


def read(case: PlanCase) -> Architecture:
    return read_architecture(Checkpoint(name=case.name, folder=kept_folder(case)))


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


def test_qlora_over_a_packed_checkpoint_keeps_it_packed(tmp_path: Path) -> None:
    folder = write_headers(plan_case("qwen2.5-vl-7b-instruct"), tmp_path / "awq")
    packed = read_architecture(Checkpoint(name="awq", folder=folder))
    plain = architecture("qwen2.5-vl-7b-instruct")
    assert replace(packed, stored=()) == plain
    found = train_estimate(packed, Training(method="qlora", checkpointing=True))
    count = 28 * LAYER  # 4 bits each; of 128 a scale in 16 bit and a zero in 8
    frozen = count // 2 + 3 * count // 128 + 2 * (LANGUAGE - count + VISION)
    assert part(found, "weights") == frozen + 4 * found.trained
    assert part(found, "unpacked") == 2 * 3584 * 18944
    dequantized = train_estimate(packed, Training(method="lora"))
    assert dequantized == train_estimate(plain, Training(method="lora"))
    with pytest.raises(UsageError, match="in awq, which --train full cannot train"):
        train_estimate(packed, Training(method="full"))


def test_a_plan_takes_packed_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_headers(plan_case("qwen2.5-vl-7b-instruct"), tmp_path / "awq")
    command = ["plan", "--train", "lora", "--model", str(folder), "--memory", "12GiB"]
    assert main(command) == 3
    assert "--train qlora" in capsys.readouterr().out
    assert main([*command, "--train", "qlora", "--checkpointing"]) == 0
    assert "as stored, unpacked layer by layer" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("zero", "weights", "gradients", "optimizer"),
    [(0, 1, 1, 1), (1, 1, 1, 4), (2, 1, 4, 4), (3, 4, 4, 4)],
)
def test_zero_cuts_more_each_stage(zero: int, weights: int, gradients: int, optimizer: int) -> None:
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
    assert main(["plan", "--model", "demo", "--train", "full", "--gpus", "2", "--zero", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("fine-tuning demo: ")
    assert "of each of 2 GPUs" in lines[0]
    assert "with --checkpointing" in lines[1]
    assert any(line.split()[0] == "logits" for line in lines if line)


def test_the_terms_make_the_sum(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--model", "demo", "--train", "lora", "--batch-size", "4", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["training"]["batch"] == 4
    moments = ("always", printed["moment"])
    summed = sum(term["bytes"] for term in printed["terms"] if term["moment"] in moments)
    assert printed["peak_bytes"] == summed
    assert {"part", "bytes", "why", "source", "moment"} == set(printed["terms"][0])


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
    command = ["plan", "--model", folder, "--train", "full", "--memory", "24GiB"]
    assert main(command) == 3
    does_not, instead, *_ = capsys.readouterr().out.splitlines()
    assert does_not == "does not fit into 24.00 GiB"
    for option in ("--zero 3 --gpus 8 --checkpointing", "--train lora --checkpointing"):
        assert f"{option} (then " in instead
        assert main([*command, *option.split()]) == 0  # the last one given counts
        assert capsys.readouterr().out.splitlines()[0] == "fits into 24.00 GiB"
