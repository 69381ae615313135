"""A processor is put together from what a published folder has: parts without a class that joins
them, and numbers that stand in config.json alone. transformers' own parts are the judge."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers

from flows.interfaces.cli.main import main
from stages.models.processors.blank_clips import clip_of
from stages.models.processors.loading import load_processor
from stages.models.processors.prepare import prepare
from tests.support import families
from tests.support.builders.words import hf
from tests.support.families import decisive

TOKENS = 6
PUBLISHED_SETTINGS = {
    "do_normalize": True,
    "do_resize": True,
    "feature_extractor_type": "ViTFeatureExtractor",
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "resample": 2,
    "size": 32,
}
"""preprocessor_config.json of nlpconnect/vit-gpt2-image-captioning, but for the pictures' size."""


def tiny_config() -> Any:
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    return hf.VisionEncoderDecoderConfig(
        encoder={"model_type": "vit", "image_size": 32, "patch_size": 8, **small}
        | {"num_attention_heads": 4},
        decoder={"model_type": "gpt2", "vocab_size": 40, "n_embd": 32, "n_layer": 2, "n_head": 4}
        | {"n_positions": 64, "add_cross_attention": True, "is_decoder": True},
        decoder_start_token_id=39,
        pad_token_id=39,
        eos_token_id=39,
    )


def write_tokenizer(folder: Path) -> None:
    words = ["a", "photo", "of", *(f"w{n}" for n in range(36)), "<|endoftext|>"]
    vocabulary = {word: at for at, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


@pytest.fixture(scope="module")
def captioner(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny vit-gpt2 in the files that are published: no class of a processor is named."""
    folder = tmp_path_factory.mktemp("vit-gpt2") / "model"
    torch.manual_seed(0)
    decisive(hf.VisionEncoderDecoderModel(tiny_config())).save_pretrained(folder)
    write_tokenizer(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(PUBLISHED_SETTINGS))
    return folder


def alone(folder: Path, picture: Path, text: str) -> str:
    """The caption by transformers alone, as the model's page calls it."""
    model = hf.VisionEncoderDecoderModel.from_pretrained(folder)
    tokenizer = hf.AutoTokenizer.from_pretrained(folder)
    images = hf.AutoImageProcessor.from_pretrained(folder)
    pixels = images(images=Image.open(picture), return_tensors="pt").pixel_values
    options: dict[str, Any] = {"max_new_tokens": TOKENS, "do_sample": False}
    if text:
        options["decoder_input_ids"] = tokenizer(text, return_tensors="pt").input_ids
    tokens = model.generate(pixels, **options)
    return str(tokenizer.decode(tokens[0], skip_special_tokens=True)).removeprefix(text).strip()


@pytest.mark.slow
@pytest.mark.parametrize("prompt", [None, "a photo of"])
def test_parts_without_a_class_that_joins_them_caption_as_transformers_alone(
    prompt: str | None, captioner: Path, tmp_path: Path
) -> None:
    assert_captions_as_transformers(captioner, prompt, tmp_path)


@pytest.mark.slow
def test_a_prompt_goes_to_the_decoder_if_a_class_joins_the_parts(
    captioner: Path, tmp_path: Path
) -> None:
    """Donut's processor returns a prompt as if a text encoder read it."""
    shutil.copytree(captioner, folder := tmp_path / "model")
    parts = (hf.AutoImageProcessor, hf.AutoTokenizer)
    images, words = (part.from_pretrained(folder) for part in parts)
    hf.VisionTextDualEncoderProcessor(images, words).save_pretrained(folder)
    assert_captions_as_transformers(folder, "a photo of", tmp_path)


def assert_captions_as_transformers(captioner: Path, prompt: str | None, tmp_path: Path) -> None:
    noise = np.random.default_rng(3).integers(0, 255, (40, 56, 3), np.uint8)
    Image.fromarray(noise).save(picture := tmp_path / "noise.png")
    words = ["caption", str(picture), "--model", str(captioner), "--out", str(tmp_path / "out")]
    words += ["--store", str(tmp_path / "store"), "--max-new-tokens", str(TOKENS), "--quiet"]
    code = main([*words, *(["--prompt", prompt] if prompt else [])])
    assert code == 0
    row = json.loads((tmp_path / "out" / "captions.jsonl").read_text())
    assert row["caption"] == alone(captioner, picture, prompt or "")
    assert row["prompt"] == (prompt or "") and row["caption"]


@pytest.mark.parametrize("form", ["no processor_config.json", "nulls in it", "no added tokens"])
@pytest.mark.parametrize("family", ["llava", "llava_onevision"])
def test_the_tokens_of_an_image_are_taken_from_config_json(
    family: str, form: str, tmp_path: Path
) -> None:
    """llava-hf/llava-1.5-7b-hf was published without processor_config.json until December 2024."""
    whole = families.checkpoint(family)
    folder = tmp_path / "model"
    shutil.copytree(whole, folder)
    settings = json.loads((folder / "processor_config.json").read_text())
    if form != "no processor_config.json":
        settings.pop("num_additional_image_tokens", None)
    if form == "no added tokens":
        (folder / "processor_config.json").write_text(json.dumps(settings))
    elif form == "nulls in it":
        counted = ("patch_size", "num_image_tokens", "vision_feature_select_strategy")
        settings |= {name: None for name in counted if name in settings}
        (folder / "processor_config.json").write_text(json.dumps(settings))
    else:
        images = {**settings["image_processor"], "processor_class": settings["processor_class"]}
        (folder / "preprocessor_config.json").write_text(json.dumps(images))
        if videos := settings.get("video_processor"):
            (folder / "video_preprocessor_config.json").write_text(json.dumps(videos))
        (folder / "processor_config.json").unlink()
    clip = clip_of("image", np.zeros((1, 40, 60, 3), np.uint8))
    made, expected = (prepare(load_processor(each), clip).count for each in (folder, whole))
    assert made == expected
