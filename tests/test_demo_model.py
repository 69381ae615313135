"""The demo's captioner and its dual encoder: how they are trained, and what they tell."""

import math
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModel, AutoProcessor
from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl as stock

from penstock_demo import CHECKPOINT, CLIPS, DUAL_CHECKPOINT
from penstock_demo.build import Shape, build
from penstock_demo.dual.batches import SIDE, make_image_batch
from penstock_demo.dual.build import DualShape, build_dual
from penstock_demo.dual.pictures import GROUPS, IGNORED, NOISE, sample_phrases, write_images
from penstock_demo.dual.scenes import FAR, PAIRS, TRAINED, sample_scene, sample_thing, twin
from penstock_demo.dual.train import (
    NEVER,
    SIGMOID_WEIGHT,
    DualRecipe,
    DualTraining,
    ImageHeads,
    comparison_loss,
    composition_loss,
    train_dual,
)
from penstock_demo.evaluate import Captioner, EvaluationPrompt, Film, judge, read_film
from penstock_demo.fast_vision import decode, fuse_norms, patchify, positions, vision
from penstock_demo.losses import IGNORE, Batch, make_batch
from penstock_demo.render import PAINT, render_frames
from penstock_demo.scoring import read_truths
from penstock_demo.train import Asker, Recipe, train
from penstock_demo.words import COLOURS, NEVER_TRAINED, SHAPES
from penstock_demo.world import caption, sample_still

NO_NOISE = np.zeros(1 << 21, np.float32)


@pytest.fixture(scope="module")
def captioner() -> Captioner:
    return Captioner(CHECKPOINT)


@pytest.fixture(autouse=True)
def stock_norms() -> Iterator[None]:
    norms: Any = stock.Qwen2_5_VLRMSNorm
    forward = norms.forward
    yield
    norms.forward = forward


def _batch(still: bool, seed: int) -> Batch:
    rng = random.Random(seed)
    while True:
        batch = make_batch(rng, NO_NOISE)
        if (batch.seconds_per_patch is None) == still:
            return batch


@pytest.mark.parametrize(("still", "seed"), [(False, 0), (True, 2)])
def test_the_batched_path_equals_the_stock_path(still: bool, seed: int) -> None:
    model, processor = build(seed=3)
    model.eval()
    batch = _batch(still, seed)
    frames = torch.from_numpy(batch.frames[:2])
    clips, times, height, width, _ = frames.shape
    kind = "image" if still else "video"
    content: Any = [{"type": kind}, {"type": "text", "text": "Describe this."}]
    request = processor.apply_chat_template(
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
    inputs = processor(text=[request] * clips, return_tensors="pt", **seen)
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
    batch = _batch(False, 4)
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
    films = [
        Film(frames=list(render_frames(spec, (0.0,), 96, 128)), frames_per_second=1.0)
        for spec in specs
    ]
    message = captioner.generate(captioner.image_inputs(films))
    assert sum(text == caption(spec) for text, spec in zip(message, specs, strict=True)) >= 6


TINY = DualShape(vision_layers=1, text_layers=1)


def test_training_draws_no_pair_that_is_never_trained() -> None:
    rng = random.Random(5)
    for _ in range(400):
        scene = sample_scene(rng, 3, nameless=0.2, cut=0.2)
        for thing in (*scene.things, *twin(rng, scene).things):
            assert thing.pair not in NEVER_TRAINED
    texts = "\n".join(text for _ in range(40) for text in sample_phrases(rng).texts)
    assert not any(f"{colour} {shape}" in texts for colour, shape in NEVER_TRAINED)
    assert all(f"{colour} {shape}" in texts for colour, shape in TRAINED)


def test_a_colour_without_a_name_is_far_from_every_named_one() -> None:
    rng = random.Random(6)
    things = [sample_thing(rng, TRAINED, (5, 9), nameless=0.5) for _ in range(300)]
    nameless = [thing.paint for thing in things if not thing.colour]
    assert len(nameless) > 100 and any(not thing.shape for thing in things)
    assert all(math.dist(paint, named) >= FAR for paint in nameless for named in PAINT.values())


def test_a_twin_differs_in_colours_or_in_shapes_alone() -> None:
    rng = random.Random(7)
    seen = set()
    for _ in range(100):
        scene = sample_scene(rng, 2)
        other = twin(rng, scene)
        pairs = list(zip(scene.things, other.things, strict=True))
        assert all((a.x, a.y, a.radius) == (b.x, b.y, b.radius) for a, b in pairs)
        changed = (
            any(a.colour != b.colour for a, b in pairs),
            any(a.shape != b.shape for a, b in pairs),
        )
        assert changed != (True, True)
        seen.add(changed)
    assert {(True, False), (False, True)} <= seen


def test_what_is_cut_off_or_never_shown_is_neither_there_nor_not_there() -> None:
    phrases = sample_phrases(random.Random(8))
    rng = random.Random(9)
    (cut,) = phrases.truths([sample_scene(rng, 1, [("orange", "star")], cut=1.0)])
    (whole,) = phrases.truths([sample_scene(rng, 1, [("green", "circle")])])

    def ignored(truths: Any) -> set[str]:
        names = [*COLOURS, *SHAPES]
        places = range(GROUPS[1].start, GROUPS[2].stop)
        return {name for name, at in zip(names, places, strict=True) if truths[at] == IGNORED}

    assert ignored(cut) == {"orange", "star", "triangle", "red"}
    assert (cut == IGNORED).sum() == 6 and (cut == 1).sum() == 1  # the pair and "nothing" too
    assert ignored(whole) == {"ring", "pink"}
    assert (whole == IGNORED).sum() == 2 and (whole == 1).sum() == 4
    assert (whole[-NOISE:] == 0).all()
    (both,) = phrases.truths([sample_scene(rng, 3, [("red", "ring"), ("blue", "star")])])
    assert ignored(both) >= {"star", "square"} and "ring" in ignored(both)


def test_a_patch_is_not_held_against_what_is_never_shown() -> None:
    red, star, circle = (
        1 + COLOURS.index("red"),
        *(1 + SHAPES.index(s) for s in ("star", "circle")),
    )
    assert NEVER.sum() == len(NEVER_TRAINED) and NEVER[red, star] and not NEVER[red, circle]
    assert not NEVER[0].any() and not NEVER[:, 0].any()
    heads = ImageHeads(4)
    classes = torch.zeros(2, 1, 1, 2, dtype=torch.int64)
    classes[0, 0, 0, 0], classes[1, 0, 0, 0] = red, circle
    truths = torch.full((1, len(sample_phrases(random.Random(0)).texts)), IGNORED)
    states, vectors = torch.ones(1, 2, 4), torch.ones(1, 4)
    before, _ = heads(states, vectors, classes, truths)
    shape: Any = heads.patches[1]
    with torch.no_grad():
        shape.bias[star] += 50  # says that the red circle is a star
    after, shown = heads(states, vectors, classes, truths)
    assert shown < 10 and after - before < 30  # the empty patch alone holds it against the head


def test_a_text_that_nobody_can_tell_costs_nothing() -> None:
    count = len(sample_phrases(random.Random(0)).texts)
    truths = torch.zeros(1, count)
    truths[0, [0, GROUPS[1].start, GROUPS[2].start, GROUPS[3].start]] = 1
    logits = torch.full((1, count), -20.0)
    logits[truths > 0] = 20.0
    assert comparison_loss(logits, truths).item() < 0.01
    logits[0, 1] = 20.0
    assert comparison_loss(logits, truths).item() > 20 * SIGMOID_WEIGHT
    truths[0, 1] = IGNORED
    assert comparison_loss(logits, truths).item() < 0.01


def test_a_pair_that_points_where_its_words_point_costs_nothing() -> None:
    count = len(sample_phrases(random.Random(0)).texts)
    texts = torch.nn.functional.normalize(torch.randn(count, 16), dim=1)
    assert composition_loss(texts) > 0.5
    colours, shapes = texts[GROUPS[1]], texts[GROUPS[2]]
    for place, (colour, shape) in enumerate(TRAINED):
        both = colours[COLOURS.index(colour)] + shapes[SHAPES.index(shape)]
        texts[place] = torch.nn.functional.normalize(both, dim=0)
    assert composition_loss(texts) < 1e-5


def test_a_batch_says_what_each_patch_shows() -> None:
    batch = make_image_batch(random.Random(3), NO_NOISE, 16, (8.0, 20.0))
    assert batch.pixels.shape == (16, SIDE, SIDE, 3) and len(batch.scenes) == 16
    for index, scene in enumerate(batch.scenes):
        shown = {int(c) for c in batch.classes[1, index].flat if c not in (0, IGNORE)}
        assert len(shown) <= len(scene.things)
    assert (batch.classes[1] > 0).any() and (batch.classes == IGNORE).any()


def test_the_same_seed_writes_the_same_pictures(tmp_path: Path) -> None:
    first = write_images(tmp_path / "a", "several", 2, 3)
    assert write_images(tmp_path / "b", "several", 2, 3) == first
    assert write_images(tmp_path / "c", "several", 2, 4) != first
    for truth in first:
        assert (tmp_path / "a" / truth.file).read_bytes() == (
            tmp_path / "b" / truth.file
        ).read_bytes()
        with Image.open(tmp_path / "a" / truth.file) as picture:
            assert all(0 <= x <= picture.width for x, _, _ in truth.places)


def test_texts_are_filled_up_and_shown_without_a_mask(tmp_path: Path) -> None:
    model, processor = build_dual(TINY)
    processor.save_pretrained(tmp_path)
    model.save_pretrained(tmp_path)
    auto: Any = AutoProcessor
    made = auto.from_pretrained(tmp_path)(
        text=["a photo of red star", "dog"], padding="max_length", return_tensors="pt"
    )
    assert set(made) == {"input_ids"} and made["input_ids"].shape == (2, TINY.length)
    with torch.no_grad():
        vectors = AutoModel.from_pretrained(tmp_path).get_text_features(**made)
    assert vectors.pooler_output.shape == (2, TINY.vision_width)


def test_training_that_was_stopped_goes_on_with_the_same_weights(tmp_path: Path) -> None:
    recipe = DualRecipe(steps=3, batch=4)
    torch.set_num_threads(1)
    whole, first, second = (DualTraining(recipe, TINY) for _ in range(3))
    for _ in range(3):
        whole.step()
    first.step()
    second.take(first.state())
    second.step()
    second.step()
    theirs = second.model.state_dict()
    for name, weights in whole.model.state_dict().items():
        torch.testing.assert_close(weights, theirs[name], rtol=0, atol=0)


def test_training_leaves_a_checkpoint_of_both_halves(tmp_path: Path) -> None:
    train_dual(DualRecipe(steps=2, batch=4), tmp_path, TINY)
    assert AutoModel.from_pretrained(tmp_path).dtype == torch.bfloat16
    assert not (tmp_path / "state.pt").exists()
    assert '"never"' in (tmp_path / "training.json").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("kind", "count", "least"),
    [("trained", 16, 15), pytest.param("never", 48, 38, marks=pytest.mark.slow)],
)
def test_the_shipped_dual_encoder_tells_fresh_pictures(
    kind: str, count: int, least: int, tmp_path: Path
) -> None:
    truths = write_images(tmp_path, kind, count, 77)
    auto: Any = AutoProcessor
    processor = auto.from_pretrained(DUAL_CHECKPOINT)
    model = AutoModel.from_pretrained(DUAL_CHECKPOINT, dtype=torch.float32).eval()
    names = [" ".join(pair) for pair in PAIRS]
    inputs = processor(
        text=[f"a photo of {name}" for name in names],
        images=[Image.open(tmp_path / truth.file) for truth in truths],
        padding="max_length",
        return_tensors="pt",
    )
    with torch.no_grad():
        found = model(**inputs).logits_per_image.argmax(1)
    right = sum(names[at] == t.labels[0] for at, t in zip(found.tolist(), truths, strict=True))
    assert right >= least
