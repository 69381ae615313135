"""Turns frames into encoder inputs and, later, a prompt into decoder inputs, both by the
checkpoint's own processor; knows no family.

A processor computes pixels and, from them, what stands in the prompt for each picture. At encoding
both are done, and the second is kept. At decoding the processor runs as it is, but is handed what
was kept in place of computing pixels: no picture is needed any more, and any prompt will do.
"""

import contextlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from artifacts.errors import EnvironmentFault, UsageError
from artifacts.schema import MediaKind
from stages.models.features import is_pixels
from stages.models.halves import asks_for_trust, needs_trust
from stages.models.records import RowCount

CHANNELS = {"images": "_process_images", "videos": "_process_videos"}
"""The processor's argument -> its method that handles it."""
NEVER_KEPT = ("video_metadata",)
"""Outputs that a processor uses only while it writes the prompt."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Clip:
    """One chunk as it comes from disk."""

    frames: np.ndarray[Any, np.dtype[np.uint8]]
    """Shape (frames, height, width, 3), RGB."""
    times: tuple[float, ...]
    """Seconds of each frame from the chunk's start."""
    seconds: float
    """Length of the chunk; 0 for an image."""
    kind: MediaKind

    def __post_init__(self) -> None:
        if self.frames.ndim != 4 or self.frames.shape[-1] != 3 or not len(self.frames):
            raise ValueError(f"frames of shape {self.frames.shape}, expected (T > 0, H, W, 3)")
        if len(self.times) != len(self.frames):
            raise ValueError(f"{len(self.times)} times for {len(self.frames)} frames")


class Row(Protocol):
    """What is kept of a row's media for its prompt."""

    @property
    def channel(self) -> str: ...
    @property
    def side(self) -> dict[str, Any]: ...
    @property
    def replacements(self) -> tuple[str, ...]: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Prepared:
    """One chunk as the encoder takes it, and what its prompt will need."""

    inputs: dict[str, Any]
    """All outputs of the image or video processor, as tensors."""
    channel: str
    """`images` or `videos`: as which the frames were taken."""
    side: dict[str, Any]
    """Those outputs that are not pixels, as the processor gave them."""
    replacements: tuple[str, ...]
    """What stands in the prompt for each picture."""
    count: RowCount


def load_processor(folder: Path, trusted: bool = False) -> Any:
    """The checkpoint's processor, padding on the left as generation needs."""
    from transformers import AutoProcessor, ProcessorMixin

    try:
        load: Any = AutoProcessor.from_pretrained
        processor = load(folder, trust_remote_code=trusted)
    except ImportError as error:
        text = " ".join(str(error).split())
        raise EnvironmentFault(
            f"the processor of {folder} needs a package that is not installed: {text}",
            hint="Install it, and run the same command again",
        ) from error
    except (OSError, ValueError, KeyError) as error:
        if not trusted and asks_for_trust(error):
            raise needs_trust(folder) from error
        raise UsageError(
            f"{folder} has no processor that can be loaded: {' '.join(str(error).split())[:200]}",
            hint="Download the checkpoint again, with its *.json and *.jinja files",
        ) from error
    if not isinstance(processor, ProcessorMixin) or not hasattr(processor, "tokenizer"):
        raise UsageError(
            f"{folder} has a {type(processor).__name__} and no processor for pictures",
            hint="Download the checkpoint again, with its preprocessor_config.json",
        )
    processor.tokenizer.padding_side = "left"
    if processor.tokenizer.pad_token is None:
        processor.tokenizer.pad_token = processor.tokenizer.eos_token
    return processor


def takes_videos(processor: Any) -> bool:
    """Whether the checkpoint takes a video as such; else its frames go in as several images."""
    return getattr(processor, "video_processor", None) is not None


def prepare(processor: Any, clip: Clip) -> Prepared:
    """Run the processor on one chunk's frames and keep all that it finds out."""
    as_video = clip.kind == "video" and takes_videos(processor)
    channel = "videos" if as_video else "images"
    media = [clip.frames] if as_video else _pictures(clip.frames)
    options: dict[str, Any] = {}
    if as_video:
        options = {"video_metadata": [[video_metadata(clip)]], "do_sample_frames": False}
    kept: list[tuple[Any, list[str]]] = []
    compute = getattr(processor, CHANNELS[channel])

    def remember(*args: Any, **kwargs: Any) -> Any:
        kept.append(compute(*args, **kwargs))
        return kept[-1]

    with _answering(processor, CHANNELS[channel], remember):
        text = render(processor, channel, len(media), "")
        outputs = _call(processor, [text], {channel: [media]}, **options)
    found, replacements = kept[0]
    return Prepared(
        inputs={name: outputs[name] for name in found if name in outputs},
        channel=channel,
        side={n: v for n, v in found.items() if not is_pixels(n) and n not in NEVER_KEPT},
        replacements=tuple(replacements),
        count=RowCount(tokens=_placeholders(processor, replacements), media=len(media)),
    )


def rebuild(processor: Any, rows: Sequence[Row], prompts: Sequence[str]) -> dict[str, Any]:
    """What the processor gives for these prompts and the media that the rows were made of, besides
    pixels; padded on the left. All rows have the same channel."""
    channel = rows[0].channel
    if any(row.channel != channel for row in rows):
        raise ValueError("rows with images and rows with videos cannot share a batch")
    for prompt in prompts:
        _refuse_placeholders(processor, prompt)
    replacements = [text for row in rows for text in row.replacements]
    side = {name: joined([row.side[name] for row in rows]) for name in rows[0].side}
    with _answering(processor, CHANNELS[channel], lambda *_, **__: (side, replacements)):
        texts = [
            render(processor, channel, len(row.replacements), prompt)
            for row, prompt in zip(rows, prompts, strict=True)
        ]
        blank = np.zeros((2, 2, 3), np.uint8)
        one = blank[None] if channel == "videos" else _pictures(blank[None])[0]
        outputs = _call(
            processor, texts, {channel: [[one] * len(row.replacements) for row in rows]}
        )
    return dict(outputs)


def render(processor: Any, channel: str, media: int, prompt: str) -> str:
    """The text of one turn, media first, by the checkpoint's chat template if it has one."""
    kind = channel.removesuffix("s")
    if not (processor.chat_template or processor.tokenizer.chat_template):
        token = getattr(processor, f"{kind}_token", None) or ""
        return "\n".join([token * media, prompt])
    content = [*({"type": kind} for _ in range(media)), {"type": "text", "text": prompt}]
    text: str = processor.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
    )
    return text


def video_metadata(clip: Clip) -> dict[str, Any]:
    """True times in the form that processors read them.

    They compute a frame's time as index / fps and the rate seen as fps * indices / total, so
    the rate of the frames themselves is given as fps, with each frame's time in steps of it.
    """
    count, times = len(clip.times), [round(time, 6) for time in clip.times]
    step = (times[-1] - times[0]) / (count - 1) if count > 1 else clip.seconds
    fps = 1 / round(step, 6) if step >= 1e-6 else 1.0
    height, width = clip.frames.shape[1:3]
    return {
        "total_num_frames": count,
        "fps": fps,
        "duration": clip.seconds,
        "frames_indices": [_index(time, fps) for time in times],
        "height": height,
        "width": width,
    }


def _index(time: float, fps: float) -> float:
    """The index whose quotient by fps is not below `time`: whole seconds are cut off, not
    rounded."""
    index = time * fps
    while index / fps < time:
        index = float(np.nextafter(index, np.inf))
    return int(index) if index == int(index) else index


def _call(processor: Any, texts: list[str], media: dict[str, Any], **options: Any) -> Any:
    bos = processor.tokenizer.bos_token
    if bos is not None and texts[0].startswith(bos):
        options["add_special_tokens"] = False  # the template wrote it; as apply_chat_template does
    return processor(text=texts, **media, return_tensors="pt", padding=True, **options)


@contextlib.contextmanager
def _answering(processor: Any, method: str, answer: Callable[..., Any]) -> Iterator[None]:
    """Let this processor object, not its class, answer one of its methods otherwise."""
    processor.__dict__[method] = answer
    try:
        yield
    finally:
        del processor.__dict__[method]


def _pictures(frames: np.ndarray[Any, np.dtype[np.uint8]]) -> list[Any]:
    from PIL import Image

    return [Image.fromarray(frame) for frame in frames]


def _placeholders(processor: Any, replacements: Sequence[str]) -> int:
    return sum(
        text.count(token) for text in replacements for token in placeholder_tokens(processor)
    )


def placeholder_tokens(processor: Any) -> set[str]:
    """What a prompt must not hold, because the model reads it as the place of a picture."""
    found = {getattr(processor, f"{kind}_token", None) for kind in ("image", "video")}
    return {token for token in found if token}


def _refuse_placeholders(processor: Any, prompt: str) -> None:
    if found := [token for token in placeholder_tokens(processor) if token in prompt]:
        raise UsageError(
            f"the prompt holds {found[0]}, which this model reads as the place of a picture",
            hint="Leave it out: each picture is placed before the prompt",
        )


def joined(values: list[Any]) -> Any:
    """One output of several rows: tensors and sequences end to end, anything else if all agree."""
    if isinstance(values[0], torch.Tensor):
        return torch.cat(values)
    if isinstance(values[0], list | tuple):
        return list(itertools.chain.from_iterable(values))
    if any(value != values[0] for value in values):
        raise ValueError(f"outputs that differ between rows cannot be joined: {values}")
    return values[0]
