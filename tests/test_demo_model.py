import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl as stock

from penstock_demo import CHECKPOINT, CLIPS
from penstock_demo.batches import Batch, make_batch
from penstock_demo.build import Shape, build
from penstock_demo.evaluate import Captioner, EvaluationPrompt, Film, judge, read_film
from penstock_demo.fast_vision import decode, fuse_norms, patchify, positions, vision
from penstock_demo.render import render_frames
from penstock_demo.scoring import read_truths
from penstock_demo.train import Asker, Recipe, train
from penstock_demo.world import caption, sample_still

NOISE = np.zeros(1 << 21, np.float32)


@pytest.fixture(scope="module")
def captioner() -> Captioner:
    return Captioner(CHECKPOINT)


@pytest.fixture(autouse=True)
def stock_norms() -> Iterator[None]:
    norms: Any = stock.Qwen2_5_VLRMSNorm
    forward = norms.forward
    yield
    norms.forward = forward


def _batch(*, still: bool, rng: random.Random) -> Batch:
    while True:
        batch = make_batch(rng, NOISE)
        if (batch.seconds_per_patch is None) == still:
            return batch


@pytest.mark.parametrize(("still", "seed"), [(False, 0), (True, 2)])
def test_the_batched_path_equals_the_stock_path(still: bool, seed: int) -> None:
    model, processor = build(seed=3)
    model.eval()
    batch = _batch(still=still, rng=random.Random(seed))
    frames = torch.from_numpy(batch.frames[:2])
    clips, times, height, width, _ = frames.shape
    kind = "image" if still else "video"
    content: Any = [{"type": kind}, {"type": "text", "text": "Describe this."}]
    asked = processor.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
    )
    seconds = (batch.seconds_per_patch or [0.0, 0.0])[:2]
    if still:
        seen: dict[str, Any] = {"images": [clip[0].numpy() for clip in frames]}
    else:
        every = list(range(times))
        seen = {
            "videos": [clip.numpy() for clip in frames],
            "video_metadata": [
                {"fps": 2 / one, "total_num_frames": times, "frames_indices": every}
                for one in seconds
            ],
        }
    inputs = processor(text=[asked] * clips, return_tensors="pt", **seen)
    pixels = inputs["pixel_values" if still else "pixel_values_videos"]
    ids = inputs["input_ids"]
    with torch.no_grad():
        expected = model(**inputs).logits
        fuse_norms()
        torch.testing.assert_close(patchify(frames).reshape(pixels.shape), pixels)
        features = vision(model, frames)
        before = ids[0].tolist().index(processor.tokenizer.convert_tokens_to_ids(f"<|{kind}_pad|>"))
        after = ids.shape[1] - before - features.shape[1]
        intervals = torch.tensor(seconds) * Shape().tokens_per_second
        where = positions(before, times // 2, height // 16, width // 16, after, intervals)
        logits = model.lm_head(decode(model, ids, features, where))
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)


def test_worn_answers_keep_their_length_and_swap_colours() -> None:
    _, processor = build()
    asker = Asker(processor, Recipe(minutes=0.0, word_dropout=0.0, colour_swaps=1.0), 2)
    batch = _batch(still=False, rng=random.Random(4))
    ids, where, answers, counts = asker.ask(batch)
    assert where.shape == (3, *ids.shape)
    assert answers.shape == counts.shape
    worn = ids[:, -answers.shape[1] :]
    colours = torch.isin(answers, asker.colours)
    assert (worn[~colours] == answers[~colours]).all()
    assert (worn[colours] != answers[colours]).any()
    assert torch.isin(worn[colours], asker.colours).all()


def test_training_leaves_a_checkpoint_the_auto_classes_load(tmp_path: Path) -> None:
    shape = Shape(vision_layers=1, text_layers=1)
    train(Recipe(minutes=0.005, threads=1), tmp_path, shape)
    told = Captioner(tmp_path).caption([read_film(CLIPS / "clip-01.mp4")], EvaluationPrompt())
    assert len(told) == 1
    assert (tmp_path / "training.json").exists()


def test_the_shipped_checkpoint_tells_the_shipped_clips(captioner: Captioner) -> None:
    truths = read_truths(CLIPS / "truth.jsonl")[::2]
    films = [read_film(CLIPS / truth.file) for truth in truths]
    board = judge(captioner, truths, films, EvaluationPrompt())
    assert board.groups[0].tallies["exact"].hits >= 5, board.table()


def test_the_shipped_checkpoint_tells_pictures(captioner: Captioner) -> None:
    rng = random.Random(8)
    specs = [sample_still(rng, "trained") for _ in range(8)]
    films = [
        Film(frames=list(render_frames(spec, (0.0,), 96, 128)), frames_per_second=1.0)
        for spec in specs
    ]
    told = captioner.generate(captioner.image_inputs(films))
    assert sum(said == caption(spec) for said, spec in zip(told, specs, strict=True)) >= 6
