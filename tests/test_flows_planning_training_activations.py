"""What a layer keeps for its backward pass, counted on real layers of transformers."""

import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from flows.planning.stacks import attention_of, mlp_of, stacks_of
from flows.planning.training.estimate import (
    LOGITS,
    adapted_layer_bytes,
    layer_bytes,
    lora_layer_bytes,
    lora_parameters,
)
from flows.planning.transformer import Transformer
from stages.models.hub.headers import Header
from tests.support.families import hf

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
    return Transformer(
        path=stack.path,
        kind="text",
        layers=stack.layers,
        layer_parameters=stack.parameters,
        linear_parameters=0,
        matrices=tuple(stack.matrices.values()),
        parameters=0,
        attention=attention_of(stack),
        mlp=mlp_of(stack),
        heads=HEADS,
        width=stack.width,
        shifts=stack.shifts,
    )


def decoder(layers: int, attention: str, keys: int) -> Any:
    config = hf.Qwen2Config(
        hidden_size=WIDTH,
        intermediate_size=INSIDE,
        num_hidden_layers=layers,
        num_attention_heads=HEADS,
        num_key_value_heads=keys,
        vocab_size=64,
        attn_implementation=attention,
    )
    return hf.Qwen2Model(config).to(torch.bfloat16).train()


def encoder(layers: int, attention: str) -> Any:
    config = hf.CLIPVisionConfig(
        hidden_size=WIDTH,
        intermediate_size=INSIDE,
        num_hidden_layers=layers,
        num_attention_heads=HEADS,
        image_size=64,
        patch_size=8,
        hidden_act="gelu",
        attn_implementation=attention,
    )
    return hf.CLIPVisionModel(config).to(torch.bfloat16).train()


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("keys", [HEADS, 2])
def test_a_gated_layer_keeps_to_the_byte_what_is_told_of_it(attention: str, keys: int) -> None:
    embedded = torch.randn(2, TOKENS, WIDTH, dtype=torch.bfloat16)
    found = kept_a_layer(lambda n: decoder(n, attention, keys), 2, inputs_embeds=embedded)
    told = layer_bytes(
        read_transformer(decoder(FEW, attention, keys)), TOKENS, fused=attention == "sdpa"
    )
    assert found == TOKENS * told


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_layer_of_a_vision_tower_too(attention: str) -> None:
    pixels = torch.randn(3, 3, 64, 64, dtype=torch.bfloat16)
    tokens = 8 * 8 + 1
    found = kept_a_layer(lambda n: encoder(n, attention), 3, pixel_values=pixels)
    told = layer_bytes(read_transformer(encoder(FEW, attention)), tokens, fused=attention == "sdpa")
    assert found == tokens * told


def test_with_dropout_and_a_plain_mlp_it_is_the_34_of_korthikanti() -> None:
    """sbh(34 + 5as/h), the masks of dropout aside: one of 1 byte after attention and one after the
    MLP; and 5as/h is 2as of the softmax, as of its mask and 2as of what comes out of it."""
    config = hf.CLIPVisionConfig(
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        num_hidden_layers=2,
        num_attention_heads=HEADS,
        image_size=64,
        patch_size=8,
    )
    told = layer_bytes(read_transformer(hf.CLIPVisionModel(config)), TOKENS)
    sums = 8 + 4 * HEADS  # of norms and of fused attention
    assert told - sums == (34 - 2) * WIDTH


class Adapted(torch.nn.Module):
    """A frozen linear layer with a LoRA, as PEFT computes it."""

    def __init__(self, base: Any, rank: int) -> None:
        super().__init__()
        self.base = base
        self.dropout = torch.nn.Dropout(0.05)
        self.down = torch.nn.Linear(base.in_features, rank, bias=False, dtype=torch.bfloat16)
        self.up = torch.nn.Linear(rank, base.out_features, bias=False, dtype=torch.bfloat16)

    def forward(self, x: Any) -> Any:
        return self.base(x) + self.up(self.down(self.dropout(x))) * 4.0


def adapted(layers: int, rank: int) -> Any:
    model = decoder(layers, "sdpa", 2).requires_grad_(False)
    for layer in model.layers:
        for part in (layer.self_attn, layer.mlp):
            for name, child in list(part.named_children()):
                if isinstance(child, torch.nn.Linear):
                    setattr(part, name, Adapted(child, rank))
    return model.train()


def test_a_layer_beside_adapters_keeps_a_copy_for_each() -> None:
    embedded = torch.randn(2, TOKENS, WIDTH, dtype=torch.bfloat16, requires_grad=True)
    found = kept_a_layer(lambda n: adapted(n, rank=8), 2, inputs_embeds=embedded)
    tower = read_transformer(decoder(FEW, "sdpa", 2))
    # A CPU's mask of dropout takes 2 bytes a number; a GPU's, which is meant, 1.
    masks = sum(columns for _, columns in tower.matrices)
    assert found == TOKENS * (lora_layer_bytes(tower, TOKENS, rank=8) + masks)
    trained = sum(w.numel() for w in adapted(FEW, rank=8).parameters() if w.requires_grad)
    assert lora_parameters(tower, rank=8) == trained


def with_peft(layers: int, attention: str, keys: int, dtype: torch.dtype) -> Any:
    """As the tune stage trains it: adapters in 32 bit, without dropout."""
    from peft import LoraConfig, inject_adapter_in_model

    model = decoder(layers, attention, keys).to(dtype).requires_grad_(False)
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    inject_adapter_in_model(LoraConfig(r=8, target_modules=targets), model)
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            parameter.data = parameter.data.float()
            parameter.requires_grad_(True)
    return model


@pytest.mark.parametrize(
    ("dtype", "attention", "keys"),
    [
        (torch.float32, "sdpa", HEADS),
        (torch.float32, "eager", 2),
        (torch.bfloat16, "sdpa", 2),
        (torch.bfloat16, "eager", HEADS),
    ],
)
def test_a_tuned_layer_is_told_to_the_byte(dtype: torch.dtype, attention: str, keys: int) -> None:
    embedded = torch.randn(2, TOKENS, WIDTH, dtype=dtype)
    found = kept_a_layer(lambda n: with_peft(n, attention, keys, dtype), 2, inputs_embeds=embedded)
    tower = read_transformer(decoder(FEW, attention, keys))
    told = adapted_layer_bytes(tower, TOKENS, 8, dtype.itemsize, fused=attention == "sdpa")
    assert found == TOKENS * told


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
    config = hf.Qwen2Config(
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        vocab_size=words,
        tie_word_embeddings=False,
    )
    model = hf.Qwen2ForCausalLM(config).to(torch.bfloat16)
    model.lm_head.requires_grad_(False)
    model.model.embed_tokens.requires_grad_(False)
    ids = torch.randint(0, words, (1, tokens))
    living = Living(model)
    with living:
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
    assert living.most == pytest.approx(sum(LOGITS) * words * tokens, rel=0.01)
