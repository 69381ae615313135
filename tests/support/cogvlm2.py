"""Tiny CogVLM2 folders in the published layout: flat config.json, published names of tensors, and a
byte-level BPE tokenizer trained by Llama 3's rule. Needs no network."""

import atexit
import functools
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from tests.support.families import hf

SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""Rule by which Llama 3 splits text before bytes are merged: digits stand apart from letters."""
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
SEEN = {
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


class Drawn:
    """Random tensors, each drawn after the one before."""

    def __init__(self, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)

    def __call__(self, *shape: int, std: float | None = None) -> torch.Tensor:
        scale = shape[-1] ** -0.5 * 1.6 if std is None else std
        return torch.randn(*shape, generator=self._generator) * scale

    def norm(self, width: int) -> torch.Tensor:
        return 1 + self(width, std=0.1)


def weights(experts: bool, seed: int = 0) -> dict[str, torch.Tensor]:
    """Tensors under their published names, in the order in which the reference's were drawn."""
    draw = Drawn(seed)
    made = {
        "model.embed_tokens.weight": draw(320, WIDTH, std=1.0),
        "lm_head.weight": draw(320, WIDTH),
        "model.norm.weight": draw.norm(WIDTH),
    }
    for index in range(LAYERS):
        made |= _layer(f"model.layers.{index}.", experts, draw)
    return made | _vision("model.vision.", draw)


def _layer(path: str, experts: bool, draw: Drawn) -> dict[str, torch.Tensor]:
    head = WIDTH // HEADS
    fused = WIDTH + 2 * KEYS * head
    attention = f"{path}self_attn."
    made = {
        f"{path}input_layernorm.weight": draw.norm(WIDTH),
        f"{path}post_attention_layernorm.weight": draw.norm(WIDTH),
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


def _vision(path: str, draw: Drawn) -> dict[str, torch.Tensor]:
    width, inner, positions = (
        SEEN[n] for n in ("hidden_size", "intermediate_size", "num_positions")
    )
    assert isinstance(width, int) and isinstance(inner, int) and isinstance(positions, int)
    made = {
        f"{path}patch_embedding.cls_embedding": draw(1, width, std=0.5),
        f"{path}patch_embedding.position_embedding.weight": draw(positions, width, std=0.5),
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
            made[f"{layer}{name}.weight"] = draw(rows, columns)
            made[f"{layer}{name}.bias"] = draw(rows, std=0.1)
        for name in ("input_layernorm", "post_attention_layernorm"):
            made[f"{layer}{name}.weight"] = draw.norm(width)
            made[f"{layer}{name}.bias"] = draw(width, std=0.1)
    return {
        **made,
        f"{path}conv.weight": draw(width, width, 2, 2, std=0.1),
        f"{path}conv.bias": draw(width, std=0.1),
        f"{path}linear_proj.linear_proj.weight": draw(WIDTH, width),
        f"{path}linear_proj.norm1.weight": draw.norm(WIDTH),
        f"{path}linear_proj.norm1.bias": draw(WIDTH, std=0.1),
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
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
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


def make_folder(folder: Path, experts: bool = False, seed: int = 0) -> Path:
    """A folder as it is published, with a program in it that must not run."""
    folder.mkdir(parents=True)
    tokenizer().save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(config(experts)))
    for name in ("configuration_cogvlm.py", "modeling_cogvlm.py"):
        (folder / name).write_text("raise SystemExit('must not run')\n")
    made = {name: tensor.contiguous() for name, tensor in weights(experts, seed).items()}
    save_file(made, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@functools.cache
def published(experts: bool = False) -> Path:
    """Such a folder, until the tests end; nobody may change it."""
    root = Path(tempfile.mkdtemp(prefix="penstock-cogvlm2-"))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    return make_folder(root / ("experts" if experts else "video"), experts)
