"""Scores a checkpoint on real files with stock transformers.

`python -m penstock_demo.evaluate CHECKPOINT` prints the score. With `--sweep`, it also varies frame
counts, frame rates, sizes and prompts.
"""

import argparse
import random
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import av
import numpy as np
import torch
from av.video.reformatter import Interpolation
from transformers import AutoModelForImageTextToText, AutoProcessor

from penstock_demo.build import IMAGE_PROMPT, VIDEO_PROMPT
from penstock_demo.clips import write_clips
from penstock_demo.render import Pixels, render_frames
from penstock_demo.scoring import Scoreboard, Truth, score_captions
from penstock_demo.world import caption, sample_still

Size = tuple[int, int]
BATCH: Final = 16
FRAME_COUNTS: Final = (4, 5, 6, 8, 11, 16)
UNSEEN_PROMPTS: Final = (
    "Please tell me, in one sentence, what is going on here!",
    "Qu'est-ce qui se passe ?",
    "Caption:",
)
"""Prompts that do not occur in the training set."""


ACCURATE = Interpolation.BICUBIC | Interpolation.FULL_CHR_H_INT | Interpolation.ACCURATE_RND


@dataclass(frozen=True, kw_only=True, slots=True)
class Film:
    """A decoded clip."""

    frames: list[Pixels]
    """All frames, height by width by 3."""
    frames_per_second: float
    """Frames per second that the file states."""

    @property
    def size(self) -> Size:
        """Return height and width in pixels."""
        height, width, _ = self.frames[0].shape
        return height, width


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationPrompt:
    """How a checkpoint is prompted."""

    prompt: str = VIDEO_PROMPT
    """Text of the prompt."""
    frames: int | None = None
    """Frames per clip; None: as the checkpoint's processor states."""
    rate_factor: float = 1.0
    """Ratio of the stated frame rate to the true one."""
    with_metadata: bool = True
    """Whether to pass metadata; without it, the processor assumes 24 sampled frames per second."""


def read_film(path: Path) -> Film:
    with av.open(str(path)) as container:
        rate = container.streams.video[0].average_rate
        # By way of planar RGB, chroma is as wide as the frame; a run has the same pixels.
        planar = (
            f.reformat(format="gbrp", interpolation=ACCURATE) for f in container.decode(video=0)
        )
        frames = [np.asarray(f.to_ndarray(format="rgb24"), np.uint8) for f in planar]
    return Film(frames=frames, frames_per_second=float(rate or 24))


def sample_indices(total: int, count: int) -> list[int]:
    """Return evenly spaced frame indices from the first frame on, as the processor samples."""
    return [int(index * total / count) for index in range(count)]


class Captioner:
    """A checkpoint loaded by the Auto classes; captions in batches."""

    def __init__(self, folder: Path) -> None:
        auto: Any = AutoProcessor
        self.processor: Any = auto.from_pretrained(folder)
        self.model: Any = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
        self.model.eval()

    def _count(self, film: Film, question: EvaluationPrompt) -> int:
        stated = self.processor.video_processor
        count: int = question.frames or int(len(film.frames) / film.frames_per_second * stated.fps)
        count = max(count, int(stated.min_frames))
        return min(count, int(stated.max_frames), len(film.frames))

    def _text(self, kind: str, prompt: str) -> Any:
        """Return one turn in the format of the chat template."""
        content = [{"type": kind}, {"type": "text", "text": prompt}]
        return self.processor.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
        )

    def _inputs(self, films: Sequence[Film], question: EvaluationPrompt) -> Any:
        chosen = [sample_indices(len(f.frames), self._count(f, question)) for f in films]
        metadata = [
            {
                "fps": film.frames_per_second * question.rate_factor,
                "total_num_frames": len(film.frames),
                "frames_indices": indices,
            }
            for film, indices in zip(films, chosen, strict=True)
        ]
        # Not stacked: the processor takes lists of frames, and clips here differ in size.
        videos = [
            [film.frames[index] for index in indices]
            for film, indices in zip(films, chosen, strict=True)
        ]
        extra = {"video_metadata": metadata} if question.with_metadata else {}
        return self.processor(
            text=[self._text("video", question.prompt)] * len(films),
            videos=videos,
            padding=True,
            return_tensors="pt",
            **extra,
        )

    def image_inputs(self, films: Sequence[Film]) -> Any:
        """Return inputs that show the first frame of each clip as an image."""
        return self.processor(
            text=[self._text("image", IMAGE_PROMPT)] * len(films),
            images=[film.frames[0] for film in films],
            padding=True,
            return_tensors="pt",
        )

    def generate(self, inputs: Any) -> list[str]:
        with torch.no_grad():
            out = self.model.generate(**inputs)
        outputs: list[str] = self.processor.batch_decode(
            out[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True
        )
        return outputs

    def caption(self, films: Sequence[Film], question: EvaluationPrompt) -> list[str]:
        """Return captions of clips."""
        batches = [films[start : start + BATCH] for start in range(0, len(films), BATCH)]
        return [
            output for batch in batches for output in self.generate(self._inputs(batch, question))
        ]


def sweeps(films: Sequence[Film]) -> Iterator[tuple[str, EvaluationPrompt, Size | None]]:
    """Yield names, prompts, and the height and width of the clips to use."""
    for count in FRAME_COUNTS:
        yield f"{count} frames", EvaluationPrompt(frames=count), None
    for factor in (0.2, 0.5, 3.0, 10.0):
        yield (
            f"frame rate stated {factor:g} times the true",
            EvaluationPrompt(rate_factor=factor),
            None,
        )
    yield "without metadata", EvaluationPrompt(with_metadata=False), None
    for height, width in sorted({film.size for film in films}):
        yield f"{width}x{height}", EvaluationPrompt(), (height, width)
    for prompt in UNSEEN_PROMPTS:
        yield f"prompt {prompt!r}", EvaluationPrompt(prompt=prompt), None


def judge(
    captioner: Captioner, truths: Sequence[Truth], films: Sequence[Film], question: EvaluationPrompt
) -> Scoreboard:
    """Return the score of a checkpoint for one prompt."""
    outputs = captioner.caption(films, question)
    return score_captions(
        truths, {t.file: output for t, output in zip(truths, outputs, strict=True)}
    )


def judge_images(captioner: Captioner, count: int, seed: int) -> Scoreboard:
    """Return the score of a checkpoint on single images."""
    rng = random.Random(seed)
    truths, outputs = [], {}
    for number in range(count):
        spec = sample_still(rng, "trained" if number % 4 else "never")
        truths.append(Truth(file=str(number), caption=caption(spec), trained=spec.is_trained))
        frames = list(render_frames(spec, (0.0,), spec.height, spec.width))
        inputs = captioner.image_inputs([Film(frames=frames, frames_per_second=1.0)])
        outputs[str(number)] = captioner.generate(inputs)[0]
    return score_captions(truths, outputs)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m penstock_demo.evaluate", description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--clips", type=int, default=200)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--sweep", action="store_true")
    chosen = parser.parse_args(arguments)
    captioner = Captioner(chosen.checkpoint)
    with tempfile.TemporaryDirectory() as folder:
        truths = write_clips(Path(folder), chosen.clips, chosen.seed)
        films = [read_film(Path(folder) / truth.file) for truth in truths]
    board = judge(captioner, truths, films, EvaluationPrompt())
    lines = [board.table()]
    lines += [f"miss: {truth.caption}\n  got: {output}" for truth, output in board.misses[:20]]
    print("\n".join(lines), flush=True)
    if chosen.sweep:
        print("pictures\n" + judge_images(captioner, chosen.clips, chosen.seed).table(), flush=True)
    for name, question, size in sweeps(films) if chosen.sweep else ():
        kept = [
            (t, film) for t, film in zip(truths, films, strict=True) if size in (None, film.size)
        ]
        scored = judge(captioner, [t for t, _ in kept], [f for _, f in kept], question)
        exact = [f"{group.name} {group.tallies['exact']}" for group in scored.groups]
        print(f"{name}: exact of {len(kept)}: {', '.join(exact)}", flush=True)


if __name__ == "__main__":
    main()
