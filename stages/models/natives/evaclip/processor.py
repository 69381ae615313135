"""Pictures to pixels and texts to tokens, as EVA-CLIP's own pages say: with CLIP's processor and
tokenizer. Knows no model."""

from pathlib import Path
from typing import Any

from transformers import CLIPImageProcessorPil, CLIPProcessor, CLIPTokenizer

from artifacts.errors import UsageError
from stages.models.natives.evaclip.config import EvaCLIPConfig, EvaCLIPVisionConfig

SETTINGS = ("preprocessor_config.json", "processor_config.json")
"""Files with settings of pictures, of which the published folders have neither."""
WORDS = ("tokenizer.json", "vocab.json")
"""Files one of which a tokenizer needs."""


class CLIPTokenizerMissing(CLIPTokenizer):
    """Takes the place of a tokenizer in a folder that has none, as one that was converted. Pictures
    need none."""

    def __call__(self, *_: Any, **__: Any) -> Any:
        raise UsageError(
            f"{self.name_or_path} holds no tokenizer ({' or '.join(WORDS)}) to read text with",
            hint="Copy vocab.json and merges.txt of openai/clip-vit-large-patch14 into it",
        )


def load_processor(folder: Path) -> CLIPProcessor:
    """Load the processor. Raises OSError or ValueError."""
    words: Any = CLIPTokenizerMissing(name_or_path=str(folder))
    if any((folder / name).exists() for name in WORDS):
        words = CLIPTokenizer.from_pretrained(folder)
    return CLIPProcessor(image_processor=_pictures(folder), tokenizer=words)


def _pictures(folder: Path) -> CLIPImageProcessorPil:
    if any((folder / name).exists() for name in SETTINGS):
        return CLIPImageProcessorPil.from_pretrained(folder)
    vision = EvaCLIPConfig.from_pretrained(folder).vision_config
    assert isinstance(vision, EvaCLIPVisionConfig)
    side = vision.image_size
    return CLIPImageProcessorPil(
        size={"shortest_edge": side}, crop_size={"height": side, "width": side}
    )
