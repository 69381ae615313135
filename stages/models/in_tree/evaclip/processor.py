"""The processor of EVA-CLIP: CLIP's image processor and tokenizer, as EVA-CLIP's model cards
specify."""

from pathlib import Path
from typing import Any

from transformers import CLIPImageProcessorPil, CLIPProcessor, CLIPTokenizer

from artifacts.errors import UsageError
from stages.models.in_tree.evaclip.config import EvaCLIPConfig, EvaCLIPVisionConfig

SETTINGS = ("preprocessor_config.json", "processor_config.json")
"""Files with image settings; the published folders have neither."""
TOKENIZER_FILES = ("tokenizer.json", "vocab.json")
"""Tokenizer files. A tokenizer needs at least one of them."""


class CLIPTokenizerMissing(CLIPTokenizer):
    """Stands in for the tokenizer of a folder without one, such as a converted folder. Images need
    no tokenizer."""

    def __call__(self, *_: Any, **__: Any) -> Any:
        raise UsageError(
            f"{self.name_or_path} holds no tokenizer ({' or '.join(TOKENIZER_FILES)}) for text",
            hint="Copy vocab.json and merges.txt of openai/clip-vit-large-patch14 into it",
        )


def load_processor(folder: Path) -> CLIPProcessor:
    """Load the processor. Raises OSError or ValueError."""
    tokenizer: Any = CLIPTokenizerMissing(name_or_path=str(folder))
    if any((folder / name).exists() for name in TOKENIZER_FILES):
        tokenizer = CLIPTokenizer.from_pretrained(folder)
    return CLIPProcessor(image_processor=_image_processor(folder), tokenizer=tokenizer)


def _image_processor(folder: Path) -> CLIPImageProcessorPil:
    if any((folder / name).exists() for name in SETTINGS):
        return CLIPImageProcessorPil.from_pretrained(folder)
    vision = EvaCLIPConfig.from_pretrained(folder).vision_config
    assert isinstance(vision, EvaCLIPVisionConfig)
    side = vision.image_size
    return CLIPImageProcessorPil(
        size={"shortest_edge": side}, crop_size={"height": side, "width": side}
    )
