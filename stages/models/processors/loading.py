"""Loads a checkpoint's processor, lists its components, and corrects its chat template.

The correction removes the template's pair of vision tokens around a video when the processor writes
a pair around each frame. The module also holds one chunk's frames as read from disk, with the true
times that processors need.
"""

from datetime import datetime
from pathlib import Path
from typing import Any
from weakref import WeakSet

import numpy as np
from numpy.typing import NDArray

from artifacts.errors import PenstockError, UsageError
from artifacts.packages import library_needs
from artifacts.texts.captions import TAGS
from stages.models.halves.features import is_pixels
from stages.models.halves.own_code import asks_for_trust, needs_trust
from stages.models.hub.folder_files import refuse_missing
from stages.models.in_tree.registry import native_of
from stages.models.processors.pixel_limit import PixelLimits, limit_pixels, own_sizes
from stages.models.processors.processor_parts import assemble_processor
from stages.models.protocols import Processor
from stages.models.published import OUTER_PAIR, change_of, published_bounds, runs_as_published
from stages.process.exit_diagnosis import out_of_memory


def to_images(frames: NDArray[np.uint8]) -> list[Any]:
    from PIL import Image

    return [Image.fromarray(frame) for frame in frames]


UNPAIRED: "WeakSet[Any]" = WeakSet()
"""Processors of models that were trained without the outer pair."""


def without_outer_pair(processor: Processor, text: str) -> str:
    """Return a turn without the pair of tokens around a video, for a processor in `UNPAIRED`; for
    others, the text as it is."""
    if processor not in UNPAIRED:
        return text
    video = processor.video_token
    return text.replace(f"{processor.vision_start_token}{video}{processor.vision_end_token}", video)


def load_processor(
    folder: Path,
    trusted: bool = False,
    *,
    generates: bool = True,
    max_pixels: int = 0,
    max_video_pixels: int = 0,
    as_published: bool | None = False,
    today: str = "",
) -> Processor:
    """Load the checkpoint's processor. Its templates write `today`, YYYY-MM-DD, as today's date.

    For a model that `generates` it pads on the left, else as in training. Each image and frame is
    limited to `max_pixels`, and all frames of a video to `max_video_pixels`. With 0, the
    processor's own limits apply, or those of the model's authors if it runs `as_published` (None:
    by the rule). Then turns are also written as the authors wrote them."""
    native = native_of(folder)
    if native is None and not trusted:
        refuse_missing(folder)
    try:
        processor = (
            assemble_processor(folder, trusted) if native is None else native.load_processor(folder)
        )
    except ImportError as error:
        raise library_needs(f"the processor of {folder}", error) from error
    except Exception as error:  # tokenizers raises nothing narrower
        if out_of_memory(error) or isinstance(error, PenstockError):
            raise
        if not trusted and asks_for_trust(error):
            raise needs_trust(folder) from error
        # Of a damaged tokenizer.model transformers says that it lacks tiktoken, too.
        if (folder / "tiktoken.model").exists() and "pip install" in str(error):
            raise library_needs(f"the processor of {folder}", error) from error
        raise UsageError(
            f"{folder} has no processor that can be loaded: {' '.join(str(error).split())[:200]}",
            hint="Download the checkpoint again, with its *.json and *.jinja files",
        ) from error
    if not hasattr(processor, "tokenizer"):
        raise UsageError(
            f"{folder} has a {type(processor).__name__}, which takes no texts",
            hint="Choose a model of the image-text-to-text kind: docs/models.md lists them",
        )
    if generates:
        processor.tokenizer.padding_side = "left"
    else:
        _lower_texts(processor.tokenizer)
    if processor.tokenizer.pad_token is None:
        processor.tokenizer.pad_token = processor.tokenizer.eos_token
    own_sizes(processor)
    frames = published_bounds(folder, as_published)
    if max_pixels or max_video_pixels or frames:
        limit_pixels(processor, PixelLimits(max_pixels, max_video_pixels, frames))
    if change_of(folder) is OUTER_PAIR and runs_as_published(folder, as_published):
        UNPAIRED.add(processor)
    if today:
        _set_today(processor, today)
    return processor


def _set_today(processor: Processor, today: str) -> None:
    """Let the chat templates of a processor write this date, YYYY-MM-DD, as today's."""
    from transformers.utils.chat_template_utils import _compile_jinja_template

    day = datetime.fromisoformat(today)
    for template in (processor.chat_template, processor.tokenizer.chat_template):
        for text in template.values() if isinstance(template, dict) else [template]:
            if text:
                # It cannot be an argument: transformers leaves functions out of those.
                _compile_jinja_template(text).globals["strftime_now"] = day.strftime


def _lower_texts(tokenizer: Any) -> None:
    """Lower the letters of texts if the tokenizer's settings say so, as its model was trained.
    Backends of tokenizers that have no such step ignore the setting: SigLIP 2's Gemma tokenizer."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or not tokenizer.init_kwargs.get("do_lower_case"):
        return
    from tokenizers.normalizers import Lowercase, Normalizer, Sequence

    if tokenizer("A")["input_ids"] != tokenizer("a")["input_ids"]:
        steps: list[Normalizer] = [Lowercase()]
        steps += [backend.normalizer] if backend.normalizer is not None else []
        backend.normalizer = Sequence(steps)


def takes_videos(processor: Processor) -> bool:
    """Return whether the checkpoint takes videos; else the frames of a video are passed as
    images."""
    return getattr(processor, "video_processor", None) is not None


def takes_images(processor: Processor) -> bool:
    return getattr(processor, "image_processor", None) is not None


def is_image_output(name: str) -> bool:
    """Return whether an output holds image content or its mask."""
    return not name.startswith("num_") and is_pixels(name)


def control_tokens(processor: Processor) -> set[str]:
    """Return the tokenizer's special tokens, which decoding removes from every text."""
    tokenizer = processor.tokenizer
    added = {str(t) for t in tokenizer.added_tokens_decoder.values() if t.special}
    return {*added, *map(str, tokenizer.all_special_tokens)} - {""}


def tag_ids(processor: Processor) -> tuple[set[int], set[int]]:
    """Return the ids of the tags that open and close reasoning and that decoding removes."""
    special = control_tokens(processor)
    opening, closing = (
        {int(processor.tokenizer.convert_tokens_to_ids(tag)) for tag in tags if tag in special}
        for tags in (TAGS, TAGS.values())
    )
    return opening, closing
