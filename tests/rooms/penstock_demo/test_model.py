"""The demo's captioner and its dual encoder: how they are trained, and what they tell."""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import AutoModel, AutoProcessor
from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl as stock

from penstock_demo import CHECKPOINT, CLIPS, DUAL_CHECKPOINT
from penstock_demo.build import Shape
from penstock_demo.dual.build import DualShape, build_dual
from penstock_demo.dual.pictures import write_images
from penstock_demo.dual.scenes import PAIRS
from penstock_demo.evaluate import Captioner, EvaluationPrompt, Film, judge, read_film
from penstock_demo.render import render_frames
from penstock_demo.scoring import read_truths
from penstock_demo.train import Recipe, train
from penstock_demo.world import caption, sample_still


@pytest.fixture(scope="module")
def captioner() -> Captioner:
    return Captioner(CHECKPOINT)


@pytest.fixture(autouse=True)
def stock_norms() -> Iterator[None]:
    norms: Any = stock.Qwen2_5_VLRMSNorm
    forward = norms.forward
    yield
    norms.forward = forward


def test_training_leaves_a_checkpoint_the_auto_classes_load(tmp_path: Path) -> None:
    shape = Shape(vision_layers=1, text_layers=1)
    train(Recipe(minutes=0.005, threads=1), tmp_path, shape)
    message = Captioner(tmp_path).caption([read_film(CLIPS / "clip-01.mp4")], EvaluationPrompt())
    assert len(message) == 1
    assert (tmp_path / "training.json").exists()


def test_the_shipped_checkpoint_tells_the_shipped_clips(captioner: Captioner) -> None:
    truths = read_truths(CLIPS / "truth.jsonl")[::2]
    films = [read_film(CLIPS / truth.file) for truth in truths]
    board = judge(captioner, truths, films, EvaluationPrompt())
    assert board.groups[0].tallies["exact"].hits >= 5, board.table()


def test_the_shipped_checkpoint_tells_pictures(captioner: Captioner) -> None:
    rng = random.Random(8)
    specs = [sample_still(rng, "trained") for _ in range(8)]
    drawn = [list(render_frames(spec, (0.0,), 96, 128)) for spec in specs]
    films = [Film(frames=frames, frames_per_second=1.0) for frames in drawn]
    message = captioner.generate(captioner.image_inputs(films))
    assert sum(text == caption(spec) for text, spec in zip(message, specs, strict=True)) >= 6


TINY = DualShape(vision_layers=1, text_layers=1)


def test_the_same_seed_writes_the_same_pictures(tmp_path: Path) -> None:
    first = write_images(tmp_path / "a", "several", 2, 3)
    assert write_images(tmp_path / "b", "several", 2, 3) == first
    assert write_images(tmp_path / "c", "several", 2, 4) != first
    for truth in first:
        one, other = ((tmp_path / name / truth.file).read_bytes() for name in "ab")
        assert one == other
        with Image.open(tmp_path / "a" / truth.file) as picture:
            assert all(0 <= x <= picture.width for x, _, _ in truth.places)


def test_texts_are_filled_up_and_shown_without_a_mask(tmp_path: Path) -> None:
    model, processor = build_dual(TINY)
    processor.save_pretrained(tmp_path)
    model.save_pretrained(tmp_path)
    loaded: Any = AutoProcessor.from_pretrained(tmp_path)
    made = loaded(text=["a photo of red star", "dog"], padding="max_length", return_tensors="pt")
    assert set(made) == {"input_ids"} and made["input_ids"].shape == (2, TINY.length)
    with torch.no_grad():
        vectors = AutoModel.from_pretrained(tmp_path).get_text_features(**made)
    assert vectors.pooler_output.shape == (2, TINY.vision_width)


@pytest.mark.parametrize(
    ("kind", "count", "least"),
    [("trained", 16, 15), pytest.param("never", 48, 38, marks=pytest.mark.slow)],
)
def test_the_shipped_dual_encoder_tells_fresh_pictures(
    kind: str, count: int, least: int, tmp_path: Path
) -> None:
    truths = write_images(tmp_path, kind, count, 77)
    processor: Any = AutoProcessor.from_pretrained(DUAL_CHECKPOINT)
    model = AutoModel.from_pretrained(DUAL_CHECKPOINT, dtype=torch.float32).eval()
    names = [" ".join(pair) for pair in PAIRS]
    texts = [f"a photo of {name}" for name in names]
    images = [Image.open(tmp_path / truth.file) for truth in truths]
    options = {"padding": "max_length", "return_tensors": "pt"}
    inputs = processor(text=texts, images=images, **options)
    with torch.no_grad():
        found = model(**inputs).logits_per_image.argmax(1)
    right = sum(names[at] == t.labels[0] for at, t in zip(found.tolist(), truths, strict=True))
    assert right >= least
