"""Tiny EVA-CLIP folders with random weights, as the hub has them and as its original code saved
them, and what that code's formulas make of them. Needs no network."""

import atexit
import functools
import json
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import CLIPTokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode

from stages.models.in_tree.registry import ORIGINALS

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


LAYOUTS = {
    "8B": Layout(),
    "8B-448": Layout(side=56),
    "18B": Layout(behind=True),
    "E-plus": Layout(rms=False, behind=True, biases=True),
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
    (layout,) = (found for found in ORIGINALS if found.recognises(weights.keys()))
    config: dict[str, Any] = layout.config({n: tuple(t.shape) for n, t in weights.items()})
    pairs = (pair for name, tensor in weights.items() for pair in layout.rename(name, tensor))
    return config, {name: tensor.contiguous() for name, tensor in pairs}


def make_folder(folder: Path, layout: Layout | None = None, *, words: bool = True) -> Path:
    """A folder as the hub has it, but for the form of its weights; `words`: with a tokenizer."""
    layout = layout or Layout()
    config, weights = converted(original(layout))
    # Of a width that was never published it is not known where norms stand.
    config["vision_config"]["post_layernorm"] = layout.behind
    config["text_config"]["bos_token_id"] = VOCABULARY - 2
    write(folder, config, weights)
    if words:
        save_tokenizer(folder)
    return folder


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
