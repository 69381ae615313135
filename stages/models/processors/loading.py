"""Loads a checkpoint's processor and lists its components."""

from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

from artifacts.errors import EnvironmentFault, UsageError
from artifacts.reasoning import TAGS
from stages.models.halves.classes import asks_for_trust, needs_trust
from stages.models.halves.features import is_pixels
from stages.models.in_tree.registry import native_of
from stages.models.processors.pixel_limit import PixelLimits, limit_pixels, own_sizes
from stages.models.processors.vision_pair import UNPAIRED
from stages.models.published import OUTER_PAIR, change_of, is_published_way, published_bounds

PLACES = ("image_token", "video_token", "boi_token")
"""Attribute names under which processors and tokenizers keep image placeholders."""

Answer = TypeVar("Answer")
_KNOWN: "WeakKeyDictionary[Any, dict[Any, Any]]" = WeakKeyDictionary()
"""Results of tests of a processor, for its lifetime."""


def known(processor: Any, question: str, find: Callable[[], Answer]) -> Answer:
    """Return the result of `find` for this processor and its chat template, computed once."""
    answers = _KNOWN.setdefault(processor, {})
    key = (question, processor.chat_template, processor.tokenizer.chat_template)
    if repr(key) not in answers:
        answers[repr(key)] = find()
    answer: Answer = answers[repr(key)]
    return answer


def load_processor(
    folder: Path,
    trusted: bool = False,
    *,
    generates: bool = True,
    max_pixels: int = 0,
    max_video_pixels: int = 0,
    as_published: bool | None = False,
    today: str = "",
) -> Any:
    """Load the checkpoint's processor. Its templates write `today`, YYYY-MM-DD, as today's date.

    For a model that `generates` it pads on the left, else as in training. Each image and frame is
    limited to `max_pixels`, and all frames of a video to `max_video_pixels`. With 0, the
    processor's own limits apply, or those of the model's authors if it runs `as_published` (None:
    by the rule). Then turns are also written as the authors wrote them."""
    from transformers import AutoProcessor, ProcessorMixin

    load: Any = AutoProcessor.from_pretrained
    native = native_of(folder)
    try:
        processor = (
            load(folder, trust_remote_code=trusted)
            if native is None
            else native.load_processor(folder)
        )
    except ImportError as error:
        raise needs_package(folder, error) from error
    except (OSError, ValueError, KeyError) as error:
        if not trusted and asks_for_trust(error):
            raise needs_trust(folder) from error
        raise UsageError(
            f"{folder} has no processor that can be loaded: {' '.join(str(error).split())[:200]}",
            hint="Download the checkpoint again, with its *.json and *.jinja files",
        ) from error
    if not isinstance(processor, ProcessorMixin) or not hasattr(processor, "tokenizer"):
        raise UsageError(
            f"{folder} has a {type(processor).__name__} but no processor for images",
            hint="Download the checkpoint again, with its preprocessor_config.json",
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
    if change_of(folder) is OUTER_PAIR and is_published_way(folder, as_published):
        UNPAIRED.add(processor)
    if today:
        _set_today(processor, today)
    return processor


def _set_today(processor: Any, today: str) -> None:
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


def needs_package(what: object, error: ImportError) -> EnvironmentFault:
    """Make the one-line error for a processor that needs a missing package."""
    text = " ".join(str(error).split())
    return EnvironmentFault(
        f"the processor of {what} needs a package that is not installed: {text[:240]}",
        hint="Install it, and run the same command again",
    )


def takes_videos(processor: Any) -> bool:
    """Return whether the checkpoint takes videos; else the frames of a video are passed as
    images."""
    return getattr(processor, "video_processor", None) is not None


def takes_images(processor: Any) -> bool:
    return getattr(processor, "image_processor", None) is not None


def is_image_output(name: str) -> bool:
    """Return whether an output holds image content or its mask."""
    return not name.startswith("num_") and (
        is_pixels(name) or "pixel" in name or name.endswith("patches")
    )


def token(processor: Any, kind: str) -> str:
    """Return the placeholder of an `image` or a `video` in a prompt; empty if there is none."""
    return _word(getattr(processor, f"{kind}_token", None))


def placeholder_tokens(processor: Any) -> set[str]:
    """Return the strings that a prompt must not contain: the model reads them as image
    placeholders."""
    parts = (processor, processor.tokenizer)
    tokens = {_word(getattr(part, name, None)) for part in parts for name in PLACES}
    tokens |= {str(processor.tokenizer.convert_ids_to_tokens(i)) for i in declared_ids(processor)}
    return {word for word in tokens if word} - {_word(processor.tokenizer.bos_token)}


def control_tokens(processor: Any) -> set[str]:
    """Return the tokenizer's special tokens, which decoding removes from every text."""
    tokenizer = processor.tokenizer
    added = {str(t) for t in tokenizer.added_tokens_decoder.values() if t.special}
    return {*added, *map(str, tokenizer.all_special_tokens)} - {""}


def tag_ids(processor: Any) -> tuple[set[int], set[int]]:
    """Return the ids of the tags that open and close reasoning and that decoding removes."""
    special = control_tokens(processor)
    opening, closing = (
        {int(processor.tokenizer.convert_tokens_to_ids(tag)) for tag in tags if tag in special}
        for tags in (TAGS, TAGS.values())
    )
    return opening, closing


def declared_ids(processor: Any) -> set[int]:
    """Return the token ids that the processor declares as image placeholders."""
    found: set[int] = set()
    for kind in ("image", "video"):
        number = getattr(processor, f"{kind}_token_id", None)
        if number is None and (word := token(processor, kind)):
            number = processor.tokenizer.convert_tokens_to_ids(word)
        if isinstance(number, int):
            found.add(number)
    return found


def count_places(processor: Any, ids: list[int], media: int) -> int:
    """Return how many features belong in a row of these token ids.

    Some processors declare a token that stands once for a whole image, and write another token per
    feature. That token is the most frequent one among the added tokens.
    """
    known = declared_ids(processor)
    declared = sum(ids.count(number) for number in known)
    if declared > media or not known:
        return declared
    tokens = processor.tokenizer
    added = set(tokens.added_tokens_decoder) - known
    added -= {tokens.pad_token_id, tokens.bos_token_id, tokens.eos_token_id}
    return max(declared, *(ids.count(number) for number in added & set(ids)), 0)


def _word(value: Any) -> str:
    """Return a token's text; some processors keep it with its settings."""
    return str(getattr(value, "content", value) or "")
