"""Tiny CogVLM2 folders in the published layout, and what the published code said under transformers
4.44 of weights and pixels that are drawn again here. Reads no remote code and needs no network."""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from tests.support.builders.words import hf
from tests.support.evaclip import Drawn, Weights
from tests.support.families import made_once
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


ROOT = Path(__file__).resolve().parents[2]
KEPT = ROOT / "tests" / "data" / "cogvlm2.safetensors"
"""Inputs, the tokens that were said, and the logits of the last one of each prompt."""
SEED = 5
DRAWN = {
    "video/b1": (7, (5,)),
    "video/b2": (11, (5, 3)),
    "video/one-frame": (6, (1,)),
    "video/24": (9, (24,)),
    "experts/b1": (7, (1,)),
    "experts/b2": (13, (1, 1)),
}
"""Case → tokens of text that were drawn before its pixels, and frames of each of its media."""
GREEDY: dict[str, Any] = {
    "max_new_tokens": 12,
    "do_sample": False,
    "eos_token_id": 319,
    "pad_token_id": 301,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Reference:
    """One case, with what was said of it."""

    name: str
    experts: bool
    text: dict[str, torch.Tensor]
    """Tokens and mask, padded on the left."""
    pictures: dict[str, torch.Tensor]
    tokens: torch.Tensor
    logits: torch.Tensor
    """Of the last token of each prompt, [rows, words]; of all of them where the whole file is."""

    @property
    def inputs(self) -> dict[str, torch.Tensor]:
        return {**self.text, **self.pictures}


def references() -> dict[str, Reference]:
    """All cases; with all of their logits where `../shared` is there."""
    kept = load_file(KEPT)
    every = _whole()
    found = {}
    for (name, media), message in zip(_pixels(), _told(kept), strict=True):
        experts = name.startswith("experts")
        pictures = {"pixel_values" if experts else "pixel_values_videos": torch.cat(media)}
        if not experts:
            pictures["video_frame_counts"] = torch.tensor([len(frames) for frames in media])
        whole = every.get(name)
        if whole is not None:
            assert all(map(torch.equal, media, whole["pix"])), "pixels are drawn otherwise"
        found[name] = Reference(
            name=name,
            experts=experts,
            text={key: message[key] for key in ("input_ids", "attention_mask")},
            pictures=pictures,
            tokens=message["tokens"],
            logits=message["logits"] if whole is None else whole["logits"],
        )
    return found


def _pixels() -> Iterator[tuple[str, list[torch.Tensor]]]:
    generator = torch.Generator().manual_seed(SEED)
    for name, (words, media) in DRAWN.items():
        torch.randint(10, 290, (words,), generator=generator)
        yield name, [torch.randn(frames, 3, 56, 56, generator=generator) for frames in media]


def _told(kept: dict[str, torch.Tensor]) -> Iterator[dict[str, torch.Tensor]]:
    for name in DRAWN:
        yield {
            key.removeprefix(f"{name}/"): value
            for key, value in kept.items()
            if key.startswith(f"{name}/")
        }


def _whole() -> dict[str, Any]:
    """The file that holds all that was said, which is too big for the repository."""
    folder = Path(os.environ.get("PENSTOCK_TEST_NATIVES", ROOT.parent / "shared" / "natives"))
    if not (folder / "ref_cog.pt").exists():
        return {}
    found: dict[str, Any] = torch.load(folder / "ref_cog.pt", weights_only=True)
    return found
