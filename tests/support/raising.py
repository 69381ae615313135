"""Tiny checkpoints whose own code raises on some items, as real ones do; needs no network."""

from pathlib import Path

from PIL import Image

from tests.support.builders.words import hf, template, words
from tests.support.families import decisive, save, text_config
from tests.support.media import picture
from tests.support.tiny_families.parts import config_of, model_of, tower

UNKNOWN = "quux"
"""A word of a prompt whose token the language half has no embedding of."""


def mistral3(folder: Path) -> Path:
    """Write a Mistral3 that raises in its vision half on a single token, as of one picture of 1x1
    pixels, and in its language half on a prompt with `UNKNOWN`."""
    processor = hf.PixtralProcessor(
        hf.PixtralImageProcessor(size={"longest_edge": 64}, patch_size={"height": 16, "width": 16}),
        words("[IMG]", "[IMG_BREAK]", "[IMG_END]"),
        patch_size=8,
        spatial_merge_size=2,
        chat_template=template("[IMG]"),
    )
    tokenizer = processor.tokenizer
    config = config_of(
        "Mistral3",
        text_config(vocab_size=len(tokenizer), model_type="mistral", sliding_window=None),
        tower("pixtral", image_size=64, patch_size=8, head_dim=8),
        spatial_merge_size=2,
        vision_feature_layer=-1,
        image_token_index=tokenizer.convert_tokens_to_ids("[IMG]"),
    )
    tokenizer.add_tokens([UNKNOWN])
    save(folder, decisive(model_of(config)), processor)
    return folder


def write_images(folder: Path, count: int, *names: str) -> None:
    """Write pictures that the vision half takes: so many, and one of each name."""
    folder.mkdir(parents=True, exist_ok=True)
    for index, name in enumerate([*(f"good{at}" for at in range(count)), *names]):
        Image.fromarray(picture(index)).save(folder / f"{name}.png")


def write_dot(folder: Path) -> None:
    """Write a picture that the vision half raises on."""
    folder.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (1, 1)).save(folder / "dot.png")
