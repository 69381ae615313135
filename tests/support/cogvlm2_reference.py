"""What the published code of CogVLM2 said under transformers 4.44, of weights and pixels that are
drawn again here. Reads no remote code."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

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
    for (name, media), told in zip(_pixels(), _told(kept), strict=True):
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
            text={key: told[key] for key in ("input_ids", "attention_mask")},
            pictures=pictures,
            tokens=told["tokens"],
            logits=told["logits"] if whole is None else whole["logits"],
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
