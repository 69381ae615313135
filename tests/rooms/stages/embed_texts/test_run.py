"""The texts stage: vectors of texts by the text half alone, as the whole model makes them, and the
line by which it makes logits."""

import inspect
import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import pre_tokenizers

from artifacts.errors import UsageError
from penstock_demo import DUAL_CHECKPOINT
from stages.embed_texts import TextsItem, TextsJob, in_numpy
from stages.embed_texts.run import TextReader, fit_logit_scale, mean_directions, run
from stages.models.half_job import HalfJob
from stages.models.halves.features import logits, text_vectors
from stages.models.halves.load import load_half
from stages.models.processors.loading import load_processor
from stages.process.requests import Make, line_of_message
from tests.support.builders.clip import save_clip
from tests.support.builders.words import hf
from tests.support.dual_encoders import names, save
from tests.support.waves import told_by

TEXTS = ["a cat", "the sky over the sea", "dog"]
SLOW = ("altclip", "blip", "chinese_clip", "align", "siglip2", "clipseg")


def saved(name: str, folder: Path) -> Path:
    return save_clip(folder) if name == "clip" else save(name, folder)


@pytest.mark.parametrize(
    "name", ["clip", "siglip", *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)]
)
def test_a_half_makes_the_vectors_and_the_logits_of_the_whole_model(
    name: str, tmp_path: Path
) -> None:
    folder = saved(name, tmp_path)
    processor = load_processor(folder, generates=False)
    half: Any = load_half(folder, "language")
    reader = TextReader(processor, half)
    inputs = reader.inputs(TEXTS)
    found = text_vectors(half, inputs)
    whole: Any = getattr(hf, names()[name]).from_pretrained(folder).eval()
    with torch.inference_mode():
        taken = inspect.signature(type(whole).get_text_features).parameters
        expected = whole.get_text_features(**{n: v for n, v in inputs.items() if n in taken})
    assert torch.equal(found, expected.pooler_output)
    scale, bias = fit_logit_scale(half, inputs, found)
    pictures = torch.randn(4, found.shape[1])
    message = logits(half, inputs, pictures)
    cosines = torch.cosine_similarity(pictures[:, None], found[None], dim=2)
    assert torch.allclose(scale * cosines + bias, message, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("lowers", [True, False])
def test_texts_are_lowered_where_the_tokenizers_settings_say_so(
    lowers: bool, tmp_path: Path
) -> None:
    folder = saved("siglip", tmp_path)
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"do_lower_case": lowers}))
    reader = TextReader(load_processor(folder, generates=False), load_half(folder, "language"))
    capital, lower = (reader.inputs([text])["input_ids"] for text in ("A Cat ÄB", "a cat äb"))
    assert torch.equal(capital, lower) is lowers


def test_who_reads_its_last_place_is_filled_up_as_it_was_trained(tmp_path: Path) -> None:
    folder = saved("siglip", tmp_path)
    reader = TextReader(load_processor(folder, generates=False), load_half(folder, "language"))
    assert reader.padded and reader.max_tokens == 40
    assert reader.inputs(["a"])["input_ids"].shape == (1, 40)


def test_who_does_not_is_filled_up_to_its_neighbours_and_cut_at_what_it_reads(
    tmp_path: Path,
) -> None:
    folder = saved("clip", tmp_path)
    half: Any = load_half(folder, "language")
    reader = TextReader(load_processor(folder, generates=False), half)
    assert not reader.padded
    assert reader.inputs(["a", "b c"])["input_ids"].shape[1] < reader.max_tokens
    long = "word " * 100
    assert reader.inputs([long])["input_ids"].shape[1] == reader.max_tokens
    assert reader.cut(["a", long]) == [1]
    inputs = reader.inputs(TEXTS)
    vectors = text_vectors(half, inputs)
    with pytest.raises(UsageError, match="scale and a bias"):
        fit_logit_scale(half, inputs, vectors.roll(1, dims=1))


def test_the_vector_of_a_group_is_the_mean_of_directions() -> None:
    some = torch.tensor([[2.0, 0.0], [0.0, 9.0], [0.0, -3.0]])
    made = mean_directions(some, [2, 1])
    assert torch.allclose(made, torch.tensor([[0.5**0.5, 0.5**0.5], [0.0, -1.0]]))


def test_a_text_on_which_the_model_raises_fails_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = TextReader.inputs

    def raising(self: TextReader, texts: list[str], **options: bool) -> Any:
        if "broken" in texts:
            raise IndexError("index out of range in self")
        return inputs(self, texts, **options)

    monkeypatch.setattr(TextReader, "inputs", raising)
    half = HalfJob(model=str(saved("clip", tmp_path)), route="dual")
    job = TextsJob(half=half, store=str(tmp_path / "store"), namespace="ab" * 32, batch=2)
    groups = [["a cat", "broken"]]
    text = "the model raises on the text 'broken'"
    with pytest.raises(UsageError, match=text):
        told_by(run, asdict(job) | {"key": "one", "groups": groups})
    requests = tmp_path / "requests"
    items = [TextsItem("one", groups), TextsItem("two", [["a cat"]])]
    requests.write_text(line_of_message(Make(batches=[items])))
    message = told_by(run, asdict(job) | {"requests": str(requests)})
    events = {event["event"]: event for event in message}
    assert events["Failed"]["media"] == "one" and text in events["Failed"]["message"]
    assert events["Answered"]["keys"] == ["two"]


def saved_clip_words(folder: Path) -> Path:
    """A CLIP with the tokenizer of its family, which lowers, composes and splits off digits."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    marks = ("<|startoftext|>", "<|endoftext|>")
    words = [*letters, *(f"{letter}</w>" for letter in letters), *marks]
    vocabulary = {word: at for at, word in enumerate(words)}
    start, end = (vocabulary[mark] for mark in marks)
    texts = {"vocab_size": len(words), "bos_token_id": start, "eos_token_id": end}
    save_clip(folder, None, {**texts, "hidden_act": "gelu"})
    hf.CLIPTokenizer(vocab=vocabulary, merges=[]).save_pretrained(folder)
    return folder


FORMS: dict[str, Callable[[Path], Path]] = {
    "clip": saved_clip_words,
    "clip, old end": lambda folder: save_clip(folder, None, {"eos_token_id": 2}),
    "siglip": lambda folder: shutil.copytree(DUAL_CHECKPOINT, folder),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("form", FORMS)
def test_numpy_gives_the_vectors_of_transformers(
    form: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    folder = FORMS[form](tmp_path / "model")
    stored = hf.AutoModel.from_pretrained(folder, dtype=dtype)
    stored.save_pretrained(folder)
    whole = stored.float().eval()
    processor = hf.AutoProcessor.from_pretrained(folder)
    texts = [*TEXTS, "Cafe\u0301 AU  Lait, 1987!", "of many words " * 20]
    limit = whole.config.text_config.max_position_embeddings
    padding = "max_length" if "siglip" in whole.config.model_type else True
    options = {"padding": padding, "truncation": True, "max_length": limit}
    expected = []
    for text in texts:
        inputs = processor(text=[text], return_tensors="pt", **options)
        with torch.inference_mode():
            made = whole.get_text_features(input_ids=inputs["input_ids"]).pooler_output
        expected.append(torch.nn.functional.normalize(made, dim=1)[0].numpy())
    found = in_numpy.text_vectors(folder, texts)
    assert found is not None and np.abs(found - np.stack(expected)).max() < 2e-6


@pytest.mark.parametrize("name", ["altclip", "siglip2", "chinese_clip"])
def test_numpy_leaves_other_families_to_their_own_code(name: str, tmp_path: Path) -> None:
    assert in_numpy.text_vectors(save(name, tmp_path), TEXTS) is None


def test_numpy_leaves_a_damaged_checkpoint_to_its_own_code(tmp_path: Path) -> None:
    weights = save_clip(tmp_path) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])
    assert in_numpy.text_vectors(tmp_path, TEXTS) is None
