"""Tiny CogVLM2 folders in the published layout: flat config.json, published names of tensors, and a
byte-level BPE tokenizer trained by Llama 3's rule. Needs no network."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from tests.support.evaclip import Drawn, Weights
from tests.support.families import hf, made_once
from tests.support.tiny_tokenizers import LLAMA3, split

SPECIAL = ("<|begin_of_text|>", "<|end_of_text|>", "<|reserved_special_token_0|>")
"""Its tokens that the model uses, in their order: begin, end, and what stands for a picture."""
PLAIN = 300
"""Tokens of text, before the special ones."""
CORPUS = (
    "Question: Describe this video in detail. Answer: A man walks along the road.",
    "Question: What happens in it? Answer: The ball rolls from left to right, and stops.",
    "Question: Describe this image in detail. Answer: 12 birds fly above 3 houses.",
)
WIDTH, INNER, LAYERS, HEADS, KEYS = 64, 96, 3, 4, 2
SEEN: dict[str, Any] = {
    "dropout_prob": 0.0,
    "hidden_act": "gelu",
    "hidden_size": 48,
    "image_size": 56,
    "in_channels": 3,
    "intermediate_size": 80,
    "layer_norm_eps": 1e-6,
    "num_heads": 4,
    "num_hidden_layers": 3,
    "num_positions": 17,
    "patch_size": 14,
}


def config(experts: bool) -> dict[str, Any]:
    """A config.json as the published ones are written."""
    name = "CogVLMForCausalLM" if experts else "CogVLMVideoForCausalLM"
    return {
        "architectures": [name],
        "auto_map": {
            "AutoConfig": "configuration_cogvlm.CogVLMConfig",
            "AutoModelForCausalLM": f"modeling_cogvlm.{name}",
        },
        "bos_token_id": PLAIN,
        "eos_token_id": PLAIN + 1,
        "pad_token_id": PLAIN + 2,
        "hidden_act": "silu",
        "hidden_size": WIDTH,
        "initializer_range": 0.02,
        "intermediate_size": INNER,
        "max_position_embeddings": 2048,
        "num_attention_heads": HEADS,
        "num_hidden_layers": LAYERS,
        "num_multi_query_heads": KEYS,
        "rms_norm_eps": 1e-5,
        "template_version": "base",
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
        "use_cache": True,
        "vision_config": SEEN,
        "vocab_size": 320,
    }


def weights(experts: bool) -> Weights:
    """Tensors under their published names, in the order in which the reference's were drawn."""
    draw = Drawn(gain=1.6, spread=0.1)
    made = {
        "model.embed_tokens.weight": draw(320, WIDTH, std=1.0),
        "lm_head.weight": draw(320, WIDTH),
        **draw.norm("model.norm", WIDTH, bias=False),
    }
    for index in range(LAYERS):
        made |= _layer(f"model.layers.{index}.", experts, draw)
    return made | _vision("model.vision.", draw)


def _layer(path: str, experts: bool, draw: Drawn) -> Weights:
    head = WIDTH // HEADS
    fused = WIDTH + 2 * KEYS * head
    attention = f"{path}self_attn."
    made = {
        **draw.norm(f"{path}input_layernorm", WIDTH, bias=False),
        **draw.norm(f"{path}post_attention_layernorm", WIDTH, bias=False),
        f"{attention}language_expert_query_key_value.weight": draw(fused, WIDTH),
        f"{attention}language_expert_dense.weight": draw(WIDTH, WIDTH),
    }
    if experts:
        made |= {
            f"{attention}vision_expert_query_key_value.weight": draw(fused, WIDTH),
            f"{attention}vision_expert_query_key_value.bias": draw(fused, std=0.3),
            f"{attention}vision_expert_dense.weight": draw(WIDTH, WIDTH),
        }
    for kind in ("language_mlp", *(["vision_mlp"] if experts else [])):
        made |= {
            f"{path}mlp.{kind}.gate_proj.weight": draw(INNER, WIDTH),
            f"{path}mlp.{kind}.up_proj.weight": draw(INNER, WIDTH),
            f"{path}mlp.{kind}.down_proj.weight": draw(WIDTH, INNER),
        }
    frequencies = 1.0 / (500000 ** (torch.arange(0, head, 2).float() / head))
    return {**made, f"{attention}rotary_emb.inv_freq": frequencies}


def _vision(path: str, draw: Drawn) -> Weights:
    width, inner = SEEN["hidden_size"], SEEN["intermediate_size"]
    made = {
        f"{path}patch_embedding.cls_embedding": draw(1, width, std=0.5),
        f"{path}patch_embedding.position_embedding.weight": draw(
            SEEN["num_positions"], width, std=0.5
        ),
        f"{path}patch_embedding.proj.weight": draw(width, 3, 14, 14, std=0.06),
        f"{path}patch_embedding.proj.bias": draw(width, std=0.1),
    }
    for index in range(3):
        layer = f"{path}transformer.layers.{index}."
        for name, rows, columns in (
            ("attention.query_key_value", 3 * width, width),
            ("attention.dense", width, width),
            ("mlp.fc1", inner, width),
            ("mlp.fc2", width, inner),
        ):
            made |= draw.linear(f"{layer}{name}", rows, columns)
        for name in ("input_layernorm", "post_attention_layernorm"):
            made |= draw.norm(f"{layer}{name}", width)
    return {
        **made,
        f"{path}conv.weight": draw(width, width, 2, 2, std=0.1),
        f"{path}conv.bias": draw(width, std=0.1),
        f"{path}linear_proj.linear_proj.weight": draw(WIDTH, width),
        **draw.norm(f"{path}linear_proj.norm1", WIDTH),
        f"{path}linear_proj.dense_h_to_4h.weight": draw(INNER, WIDTH),
        f"{path}linear_proj.gate_proj.weight": draw(INNER, WIDTH),
        f"{path}linear_proj.dense_4h_to_h.weight": draw(WIDTH, INNER),
        f"{path}boi": draw(1, 1, WIDTH, std=1.0),
        f"{path}eoi": draw(1, 1, WIDTH, std=1.0),
    }


def tokenizer() -> Any:
    """Bytes, some merged, and the special tokens behind them, as in Llama 3."""
    core = Tokenizer(models.BPE(ignore_merges=True))
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            split(LLAMA3),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=PLAIN,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    core.train_from_iterator(CORPUS, trainer)
    assert core.get_vocab_size() == PLAIN
    core.add_special_tokens([*SPECIAL])
    begin = (SPECIAL[0], core.token_to_id(SPECIAL[0]))
    core.post_processor = processors.TemplateProcessing(
        single=f"{SPECIAL[0]} $A", pair=f"{SPECIAL[0]} $A $B", special_tokens=[begin]
    )
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token=SPECIAL[0], eos_token=SPECIAL[1]
    )


def make_folder(folder: Path, experts: bool = False) -> Path:
    """A folder as it is published, with a program in it that must not run."""
    folder.mkdir(parents=True)
    tokenizer().save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(config(experts)))
    for name in ("configuration_cogvlm.py", "modeling_cogvlm.py"):
        (folder / name).write_text("raise SystemExit('must not run')\n")
    made = {name: tensor.contiguous() for name, tensor in weights(experts).items()}
    save_file(made, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def published(experts: bool = False) -> Path:
    """Such a folder, not to be written to."""
    return _published("experts" if experts else "video")


@made_once
def _published(folder: Path, kind: str) -> None:
    make_folder(folder, kind == "experts")
