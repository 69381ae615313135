"""Small clips, and the way the whole model captions them: processor, then `generate`, with nothing
of this program in between."""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import LogitsProcessor

from artifacts.schema import HalfName
from stages.models import ModelProfile, describe, load_half
from stages.models.processors.blank_clips import Clip

PROMPTS = ("Describe.", "What happens in it?", "Say in one long sentence what you see.", "Who?")
NATIVE_FPS = 30
NATIVE_STEP = 15
"""Frames of the source between two that are taken: two a second."""


def clips(kind: str, count: int, frames: int = 4, height: int = 48, width: int = 64) -> list[Clip]:
    """Clips of noise, one unlike the other."""
    number = frames if kind == "video" else 1
    made = []
    for index in range(count):
        rng = np.random.default_rng(index)
        pixels = rng.integers(0, 255, (number, height, width, 3), dtype=np.uint8)
        times = tuple(step / 2 for step in range(number))
        seconds = number / 2 if kind == "video" else 0.0
        which: Any = kind
        made.append(Clip(frames=pixels, times=times, seconds=seconds, kind=which))
    return made


class Lowered(LogitsProcessor):
    """The rule of OpenAI and vLLM, token by token, behind a prompt of so many tokens."""

    def __init__(self, penalty: float, prompt: int) -> None:
        self.penalty, self.prompt = penalty, prompt

    def __call__(self, ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        found = scores.clone()
        for row, tokens in enumerate(ids[:, self.prompt :].tolist()):
            for token in set(tokens):
                found[row, token] -= self.penalty
        return found


def joint_inputs(processor: Any, batch: Sequence[Clip], prompts: Sequence[str]) -> dict[str, Any]:
    """What the processor gives for media and prompts at once."""
    as_video = batch[0].kind == "video" and hasattr(processor, "video_processor")
    channel, number = ("video", 1) if as_video else ("image", len(batch[0].frames))
    texts = []
    for prompt in prompts:
        parts = [*({"type": channel} for _ in range(number)), {"type": "text", "text": prompt}]
        turn = [{"role": "user", "content": parts}]
        texts.append(processor.apply_chat_template(turn, add_generation_prompt=True))
    options: dict[str, Any] = {"images": [list(clip.frames) for clip in batch]}
    if as_video:
        taken = [[step * NATIVE_STEP for step in range(len(clip.frames))] for clip in batch]
        options = {
            "videos": [clip.frames for clip in batch],
            "do_sample_frames": False,
            "video_metadata": [
                {
                    "fps": NATIVE_FPS,
                    "total_num_frames": NATIVE_STEP * len(indexes),
                    "duration": clip.seconds,
                    "frames_indices": indexes,
                }
                for indexes, clip in zip(taken, batch, strict=True)
            ],
        }
    bos = processor.tokenizer.bos_token
    if bos is not None and texts[0].startswith(bos):
        options["add_special_tokens"] = False
    return dict(processor(text=texts, padding=True, return_tensors="pt", **options))


@functools.cache
def joint_model(folder: Path) -> Any:
    """The whole model, loaded from disk."""
    from transformers import AutoModelForImageTextToText

    return AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()


@functools.cache
def half_model(folder: Path, keep: HalfName) -> Any:
    """One half of it, loaded from disk."""
    return load_half(folder, keep, dtype=torch.float32)


@functools.cache
def profile_of(folder: Path) -> ModelProfile:
    """What is known of it, which takes a second to find out."""
    return describe(folder)


def without_pixels(inputs: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in inputs.items() if not name.startswith("pixel_")}
