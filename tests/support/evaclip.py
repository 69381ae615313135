"""Tiny EVA-CLIP folders with random weights, as the hub has them and as its original code saved
them, and what that code's formulas make of them. Needs no network."""

import atexit
import functools
import json
import re
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch.nn import functional
from transformers import CLIPTokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode

from stages.models.in_tree.registry import ORIGINALS
from tests.support.builders.plan_cases import plan_case

WIDTH, INNER, LAYERS, HEAD = 128, 640, 3, 64
TEXT_WIDTH, TEXT_INNER, VOCABULARY, LONGEST, PROJECTED = 64, 256, 514, 77, 48
PATCH = 14
Weights = dict[str, torch.Tensor]


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """What differs from one published checkpoint to another."""

    rms: bool = True
    """Whether norms are of root mean squares, without biases."""
    behind: bool = False
    """Whether norms stand behind attention and MLP."""
    biases: bool = False
    """Whether query and value have biases."""
    side: int = 28
    """Pixels of a side of a picture."""
    case: str = "eva-clip-8b"
    """List of the tensors that the hub has of it, in tests/support/builders/plan_cases; empty if it
    was never there."""


LAYOUTS = {
    "8B": Layout(),
    "8B-448": Layout(side=56, case="eva-clip-8b-448"),
    "18B": Layout(behind=True, case="eva-clip-18b"),
    "E-plus": Layout(rms=False, behind=True, biases=True, case=""),
}


class Drawn:
    """Random tensors, each drawn after the one before. `gain`: of matrices; `spread`: standard
    deviation of biases, and of the weights of norms around 1."""

    def __init__(self, seed: int = 0, gain: float = 1.0, spread: float = 0.2) -> None:
        self._generator = torch.Generator().manual_seed(seed)
        self._gain, self._spread = gain, spread

    def __call__(self, *shape: int, std: float | None = None) -> torch.Tensor:
        scale = shape[-1] ** -0.5 * self._gain if std is None else std
        return torch.randn(*shape, generator=self._generator) * scale

    def linear(self, name: str, rows: int, columns: int) -> Weights:
        weight = {f"{name}.weight": self(rows, columns)}
        return {**weight, f"{name}.bias": self(rows, std=self._spread)}

    def norm(self, name: str, width: int, bias: bool = True) -> Weights:
        made = {f"{name}.weight": 1 + self(width, std=self._spread)}
        return {**made, f"{name}.bias": self(width, std=self._spread)} if bias else made


def original(layout: Layout) -> Weights:
    """The tensors of a checkpoint under the names of the original code."""
    draw = Drawn()
    return {"logit_scale": torch.tensor(1.5), **_vision(layout, draw), **_text(draw)}


def _vision(layout: Layout, draw: Drawn) -> Weights:
    positions = (layout.side // PATCH) ** 2 + 1
    made = {
        "visual.cls_token": draw(1, 1, WIDTH, std=0.5),
        "visual.pos_embed": draw(1, positions, WIDTH, std=0.5),
        "visual.patch_embed.proj.weight": draw(WIDTH, 3, PATCH, PATCH, std=0.06),
        "visual.patch_embed.proj.bias": draw(WIDTH, std=0.2),
        "visual.head.weight": draw(PROJECTED, WIDTH),
        **draw.norm("visual.norm", WIDTH, not layout.rms),
    }
    for index in range(LAYERS):
        block = f"visual.blocks.{index}"
        made |= {f"{block}.attn.qkv.weight": draw(3 * WIDTH, WIDTH)}
        for part in "qv" if layout.biases else "":
            made[f"{block}.attn.{part}_bias"] = draw(WIDTH, std=0.2)
        made |= draw.linear(f"{block}.attn.proj", WIDTH, WIDTH)
        made |= draw.linear(f"{block}.mlp.fc1", INNER, WIDTH)
        made |= draw.linear(f"{block}.mlp.fc2", WIDTH, INNER)
        for norm in ("norm1", "norm2"):
            made |= draw.norm(f"{block}.{norm}", WIDTH, not layout.rms)
    return made


def _text(draw: Drawn) -> Weights:
    made = {
        "text.token_embedding.weight": draw(VOCABULARY, TEXT_WIDTH, std=0.5),
        "text.positional_embedding": draw(LONGEST, TEXT_WIDTH, std=0.5),
        "text.text_projection": draw(TEXT_WIDTH, PROJECTED),
        **draw.norm("text.ln_final", TEXT_WIDTH),
    }
    for index in range(LAYERS):
        block = f"text.transformer.resblocks.{index}"
        fused = draw.linear(f"{block}.attn.in_proj", 3 * TEXT_WIDTH, TEXT_WIDTH)
        made |= {name.replace("in_proj.", "in_proj_"): value for name, value in fused.items()}
        made |= draw.linear(f"{block}.attn.out_proj", TEXT_WIDTH, TEXT_WIDTH)
        made |= draw.linear(f"{block}.mlp.c_fc", TEXT_INNER, TEXT_WIDTH)
        made |= draw.linear(f"{block}.mlp.c_proj", TEXT_WIDTH, TEXT_INNER)
        for norm in ("ln_1", "ln_2"):
            made |= draw.norm(f"{block}.{norm}", TEXT_WIDTH)
    return made


def converted(weights: Mapping[str, torch.Tensor]) -> tuple[dict[str, Any], Weights]:
    """The config.json and the tensors that the registry's layout makes of an original file."""
    layouts = map(import_module, ORIGINALS.values())
    (layout,) = (found for found in layouts if found.recognises(weights.keys()))
    config: dict[str, Any] = layout.config({n: tuple(t.shape) for n, t in weights.items()})
    pairs = (pair for name, tensor in weights.items() for pair in layout.rename(name, tensor))
    return config, {name: tensor.contiguous() for name, tensor in pairs}


def make_folder(folder: Path, layout: Layout | None = None, *, words: bool = True) -> Path:
    """A folder as the hub has it, but for the form of its weights; `words`: with a tokenizer."""
    layout = layout or Layout()
    config, weights = converted(original(layout))
    if layout.case:  # its class has the scale as a constant, and config.json states another
        names = published_names(layout)
        assert weights.keys() - names == {"logit_scale"}
        weights = {name: weights[name] for name in names}
        config["logit_scale_init_value"] = plan_case(layout.case).config["logit_scale_init_value"]
    # Of a width that was never published it is not known where norms stand.
    config["vision_config"]["post_layernorm"] = layout.behind
    config["text_config"]["bos_token_id"] = VOCABULARY - 2
    write(folder, config, weights)
    if words:
        save_tokenizer(folder)
    return folder


def published_names(layout: Layout) -> list[str]:
    """The names of the tensors that the hub has of this layout, in a model of LAYERS layers."""
    names = plan_case(layout.case).tensors
    beyond = re.compile(r"\.layers\.(\d+)\.")
    return [n for n in names if not (found := beyond.search(n)) or int(found[1]) < LAYERS]


@functools.cache
def published(name: str = "8B") -> Path:
    """Such a folder, until the tests end; nobody may change it."""
    root = Path(tempfile.mkdtemp(prefix="penstock-evaclip-"))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    return make_folder(root / name, LAYOUTS[name])


def write(folder: Path, config: Mapping[str, Any], weights: Weights) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    code = {"AutoModel": "modeling_evaclip.EvaCLIPModel"}
    (folder / "config.json").write_text(json.dumps({**config, "auto_map": code}))
    (folder / "modeling_evaclip.py").write_text("raise SystemExit('must not run')\n")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def save_tokenizer(folder: Path) -> None:
    """CLIP's tokenizer with bytes for words."""
    letters = list(bytes_to_unicode().values())
    every = [*letters, *(f"{letter}</w>" for letter in letters)]
    words = {word: at for at, word in enumerate([*every, "<|startoftext|>", "<|endoftext|>"])}
    assert len(words) == VOCABULARY
    CLIPTokenizer(vocab=words, merges=[]).save_pretrained(folder)


def drawn_pixels(layout: Layout, count: int = 3) -> torch.Tensor:
    return Drawn(1)(count, 3, layout.side, layout.side, std=1.0)


def drawn_ids() -> torch.Tensor:
    """Three texts of several lengths, each with the end of text behind it, and nothing after it."""
    ids = torch.randint(0, VOCABULARY - 2, (3, 9), generator=torch.Generator().manual_seed(2))
    ids[:, 0] = VOCABULARY - 2
    for row in range(3):
        ids[row, 8 - row] = VOCABULARY - 1
        ids[row, 9 - row :] = 0
    return ids


def image_vectors(weights: Weights, layout: Layout, pixels: torch.Tensor) -> torch.Tensor:
    """The vectors of pictures by the original code's formulas."""
    patches = functional.conv2d(
        pixels,
        weights["visual.patch_embed.proj.weight"],
        weights["visual.patch_embed.proj.bias"],
        stride=PATCH,
    )
    first = weights["visual.cls_token"].expand(len(pixels), -1, -1)
    hidden = torch.cat([first, patches.flatten(2).mT], 1) + weights["visual.pos_embed"]
    for index in range(LAYERS):
        block = {
            name.removeprefix(f"visual.blocks.{index}."): tensor
            for name, tensor in weights.items()
            if name.startswith(f"visual.blocks.{index}.")
        }
        parts = ("norm1", _attention), ("norm2", _mlp)
        for norm, compute in parts:
            if layout.behind:
                hidden = hidden + _normed(compute(hidden, block), block, norm, layout.rms)
            else:
                hidden = hidden + compute(_normed(hidden, block, norm, layout.rms), block)
    vectors = _normed(hidden, weights, "visual.norm", layout.rms)[:, 0]
    return vectors @ weights["visual.head.weight"].T


def _normed(hidden: torch.Tensor, weights: Weights, name: str, rms: bool) -> torch.Tensor:
    width, weight = hidden.shape[-1:], weights[f"{name}.weight"]
    if rms:
        return functional.rms_norm(hidden, width, weight, eps=1e-6)
    return functional.layer_norm(hidden, width, weight, weights[f"{name}.bias"], eps=1e-6)


def _attention(hidden: torch.Tensor, block: Weights) -> torch.Tensor:
    query, key, value = functional.linear(hidden, block["attn.qkv.weight"]).chunk(3, -1)
    if "attn.q_bias" in block:
        query, value = query + block["attn.q_bias"], value + block["attn.v_bias"]
    return functional.linear(
        _attended(query, key, value), block["attn.proj.weight"], block["attn.proj.bias"]
    )


def _mlp(hidden: torch.Tensor, block: Weights) -> torch.Tensor:
    inner = functional.linear(hidden, block["mlp.fc1.weight"], block["mlp.fc1.bias"])
    return functional.linear(functional.gelu(inner), block["mlp.fc2.weight"], block["mlp.fc2.bias"])


def _attended(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, causal: bool = False
) -> torch.Tensor:
    query, key, value = (
        part.unflatten(-1, (-1, HEAD)).transpose(1, 2) for part in (query, key, value)
    )
    made = functional.scaled_dot_product_attention(query, key, value, is_causal=causal)
    return made.transpose(1, 2).flatten(2)


def text_vectors(weights: Weights, ids: torch.Tensor) -> torch.Tensor:
    """The vectors of texts by the original code's formulas."""
    hidden = weights["text.token_embedding.weight"][ids]
    hidden = hidden + weights["text.positional_embedding"][: ids.shape[1]]

    def normed(states: torch.Tensor, name: str) -> torch.Tensor:
        pair = weights[f"text.{name}.weight"], weights[f"text.{name}.bias"]
        return functional.layer_norm(states, states.shape[-1:], *pair)

    def linear(states: torch.Tensor, name: str, join: str = ".") -> torch.Tensor:
        pair = weights[f"text.{name}{join}weight"], weights[f"text.{name}{join}bias"]
        return functional.linear(states, *pair)

    for index in range(LAYERS):
        block = f"transformer.resblocks.{index}"
        fused = linear(normed(hidden, f"{block}.ln_1"), f"{block}.attn.in_proj", "_")
        query, key, value = fused.chunk(3, -1)
        seen = _attended(query, key, value, causal=True)
        hidden = hidden + linear(seen, f"{block}.attn.out_proj")
        inner = linear(normed(hidden, f"{block}.ln_2"), f"{block}.mlp.c_fc")
        hidden = hidden + linear(functional.gelu(inner), f"{block}.mlp.c_proj")
    ends = normed(hidden, "ln_final")[torch.arange(len(ids)), ids.argmax(-1)]
    return ends @ weights["text.text_projection"]
