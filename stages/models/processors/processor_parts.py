"""Puts a checkpoint's processor together from what its folder has.

Two kinds of published folders need it. Some name no class of a processor: their image processor and
their tokenizer are separate, as users called them, and a text is the beginning of the answer.
Others name one, but come from a time when the model counted an image's tokens and not the
processor: its patch size and the selection of features then stand in config.json alone.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from transformers import BatchFeature, VisionTextDualEncoderProcessor

from stages.models.hub.checkpoint import read_config
from stages.models.hub.folder_files import PROCESSOR
from stages.models.protocols import Processor

STATED: Mapping[str, Callable[[Any], int | str]] = {
    "patch_size": lambda config: config.vision_config.patch_size,
    "vision_feature_select_strategy": lambda config: config.vision_feature_select_strategy,
    "num_image_tokens": lambda config: (
        (config.vision_config.image_size // config.vision_config.patch_size) ** 2
    ),
    "num_query_tokens": lambda config: config.num_query_tokens,
}
"""Attribute of processors that decides how many tokens an image has → its value in config.json."""
ADDED = "num_additional_image_tokens"
"""Attribute of processors: tokens of an image besides its patches."""
CLASS_TOKEN_TOWERS = ("clip_vision_model",)
"""Types of vision encoders with a class token before the patches, in models whose config.json
states a selection of features."""


class DecoderTextProcessor(VisionTextDualEncoderProcessor):
    """Prepares images for an encoder, and texts for the decoder, which continues them."""

    def __call__(self, images: Any = None, text: Any = None, **options: Any) -> BatchFeature:
        plain = {**options, "add_special_tokens": False}
        outputs: BatchFeature = super().__call__(images=images, text=text, **plain)
        return outputs


def assemble_processor(folder: Path, trusted: bool) -> Processor:
    """Load the processor that transformers finds for a folder, completed from the folder's other
    files. Raises what transformers raises."""
    from transformers import AutoImageProcessor, AutoProcessor, AutoTokenizer, ProcessorMixin

    options: Any = {"trust_remote_code": trusted}
    processor: Processor = AutoProcessor.from_pretrained(folder, **options)
    if not isinstance(processor, ProcessorMixin):
        parts = (AutoImageProcessor, AutoTokenizer)
        join: Any = DecoderTextProcessor
        processor = join(*(part.from_pretrained(folder, **options) for part in parts))
        return processor
    _set_image_tokens(processor, folder, trusted)
    return processor


def _set_image_tokens(processor: Processor, folder: Path, trusted: bool) -> None:
    """Set from config.json what the processor's files leave out about the tokens of an image."""
    from transformers import AutoConfig

    unstated = [name for name in STATED if getattr(processor, name, 0) is None]
    added = hasattr(processor, ADDED) and ADDED not in read_config(folder, PROCESSOR)
    if not (unstated or added):
        return
    config = AutoConfig.from_pretrained(folder, trust_remote_code=trusted)
    for name in unstated:
        setattr(processor, name, STATED[name](config))
    if added and config.vision_config.model_type in CLASS_TOKEN_TOWERS:
        setattr(processor, ADDED, 1)
