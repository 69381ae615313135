"""Our own processor shows a video as the published code did: its pixels, its tokens, its places."""

import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from artifacts.errors import UsageError
from stages.models.in_tree.cogvlm2.model import of_experts, positions_of
from stages.models.processors.blank_clips import Clip
from stages.models.processors.input_sizes import probe
from stages.models.processors.loading import load_processor
from stages.models.processors.prepare import prepare, rebuild
from tests.support.builders.plan_cases import kept_folder, plan_case
from tests.support.clips import PROMPTS, clips, joint_inputs
from tests.support.cogvlm2 import PLAIN, published

BEGIN, END, PLACE = PLAIN, PLAIN + 1, PLAIN + 2
EACH = 6
"""Places of a frame of the tiny model: four patches by fours, and two ends."""
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


def processor_of(experts: bool = False) -> Any:
    return load_processor(published(experts))


def words(processor: Any, text: str) -> list[int]:
    found: list[int] = processor.tokenizer.encode(text, add_special_tokens=False)
    return found


def ids_of(clip: Clip, prompt: str, experts: bool = False) -> list[int]:
    processor = processor_of(experts)
    found = rebuild(processor, [prepare(processor, clip)], [prompt])["input_ids"]
    return [int(number) for number in found[0]]


def test_each_frame_has_its_places_and_its_number() -> None:
    (clip,) = clips("video", 1, frames=24)
    processor = processor_of()
    expected = [BEGIN]
    for number in range(24):
        expected += [PLACE] * EACH + words(processor, str(number))
    # The published code encodes the text by itself; a merge over the last number would differ.
    expected += words(processor, "Question: Describe. Answer:")
    assert ids_of(clip, "Describe.") == expected


def test_a_picture_is_a_video_of_one_frame() -> None:
    (clip,) = clips("image", 1)
    found = ids_of(clip, "Who?")
    assert found[: EACH + 1] == [BEGIN, *[PLACE] * EACH]
    assert found[EACH + 1 :] == words(processor_of(), "0Question: Who? Answer:")


def test_the_image_model_is_shown_a_picture_without_a_number() -> None:
    (clip,) = clips("image", 1)
    found = ids_of(clip, "Who?", experts=True)
    assert found == [BEGIN, *[PLACE] * EACH, *words(processor_of(), "Question: Who? Answer:")]
    two = "<|reserved_special_token_0|>" * 2
    pictures = list(np.zeros((2, 64, 64, 3), np.uint8))
    with pytest.raises(ValueError, match="one image per prompt"):
        processor_of(experts=True)(images=pictures, text=[two])


def test_what_was_said_before_stands_before_the_question() -> None:
    processor = processor_of()
    turns = [
        {"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "Who?"}]},
        {"role": "assistant", "content": "A man."},
        {"role": "user", "content": [{"type": "text", "text": "Where?"}]},
    ]
    assert processor.apply_chat_template(turns, add_generation_prompt=True) == (
        "<|begin_of_text|><|reserved_special_token_0|>"
        "Question: Who? Answer: A man.\nQuestion: Where? Answer:"
    )


def test_padding_is_not_what_stands_for_a_picture() -> None:
    processor = processor_of()
    batch = [*clips("video", 1, frames=5), *clips("video", 1, frames=2)]
    rows = [prepare(processor, clip) for clip in batch]
    inputs = rebuild(processor, rows, ["Describe."] * 2)
    ids, mask = inputs["input_ids"], inputs["attention_mask"].bool()
    assert set(ids[~mask].tolist()) == {END}
    assert (ids == PLACE).sum(1).tolist() == [5 * EACH, 2 * EACH]
    assert inputs["video_frame_counts"].tolist() == [5, 2]


@pytest.mark.parametrize("kind", ["image", "video"])
def test_a_prompt_is_rebuilt_from_what_was_kept(kind: str) -> None:
    processor = processor_of()
    batch = clips(kind, 3)
    videos = [clip.frames for clip in batch]
    place = "<|begin_of_text|><|reserved_special_token_0|>"
    texts = [f"{place}Question: {prompt} Answer:" for prompt in PROMPTS[:3]]
    options: dict[str, Any] = {"padding": True, "return_tensors": "pt"}
    joint = dict(processor(text=texts, videos=videos, add_special_tokens=False, **options))
    if kind == "video":
        message = joint_inputs(processor, batch, PROMPTS[:3])
        assert all(torch.equal(message[name], value) for name, value in joint.items())
    rows = [prepare(processor, clip) for clip in batch]
    assert all("outline" not in row.side for row in rows)
    found = rebuild(processor, rows, PROMPTS[:3])
    assert all(torch.equal(found[name], value) for name, value in joint.items() if name in found)
    assert found.keys() == joint.keys() - {"pixel_values_videos"}


def plain_bilinear(frame: np.ndarray[Any, Any], side: int) -> np.ndarray[Any, Any]:
    """The middle of a frame of bytes, its shorter side brought to `side`, from four pixels a point,
    in 64 bit."""
    height, width = frame.shape[:2]
    sizes = (side, math.floor(width / height * side))
    if height > width:
        sizes = (math.floor(height / width * side), side)
    normal = (frame / 255 - np.array(MEAN)) / np.array(STD)
    taken = []
    for length, size in zip((height, width), sizes, strict=True):
        at = np.clip((np.arange(size) + 0.5) * length / size - 0.5, 0, length - 1)
        low = np.floor(at).astype(int)
        first = round((size - side) / 2)
        part = slice(first, first + side)
        taken.append((low[part], np.minimum(low + 1, length - 1)[part], (at - low)[part]))
    (top, bottom, down), (left, right, across) = taken
    down, across = down[:, None, None], across[None, :, None]
    upper = normal[top][:, left] * (1 - across) + normal[top][:, right] * across
    lower = normal[bottom][:, left] * (1 - across) + normal[bottom][:, right] * across
    made: np.ndarray[Any, Any] = (upper * (1 - down) + lower * down).transpose(2, 0, 1)
    return made


@pytest.mark.parametrize("size", [(640, 360), (40, 30), (333, 500)])
def test_pixels_are_those_of_bilinear_interpolation_that_does_not_smooth(
    size: tuple[int, int],
) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (2, *size, 3), dtype=np.uint8)
    clip = Clip(frames=noise, times=(0.0, 1.0), seconds=2.0, kind="video")
    found = prepare(processor_of(), clip).inputs["pixel_values_videos"]
    assert found.shape == (2, 3, 56, 56)
    for frame, pixels in zip(noise, found, strict=True):
        assert np.abs(pixels.numpy() - plain_bilinear(frame, 56)).max() < 2e-3


@pytest.mark.slow
def test_frames_are_stored_at_their_own_size() -> None:
    fit = probe(processor_of(), "video").fit
    assert fit.size(1080, 1920) == (1080, 1920)


def test_24_frames_take_1609_tokens_and_97_positions() -> None:
    row = [False]
    for _ in range(24):
        row += [True] * 66 + [False]
    positions = positions_of(torch.tensor([row]))[0]
    assert len(positions) == 1609 and int(positions.max()) + 1 == 97
    assert positions[:4].tolist() == [0, 1, 2, 2]
    assert positions[64:69].tolist() == [2, 2, 3, 4, 5]


def test_positions_of_a_padded_row_begin_where_it_does() -> None:
    standing = torch.tensor([[False, False, False, True, True, True, True, False]])
    mask = torch.tensor([[0, 0, 1, 1, 1, 1, 1, 1]])
    assert positions_of(standing, mask).tolist() == [[0, 0, 0, 1, 2, 2, 3, 4]]
    assert of_experts(standing).tolist() == [[*[False] * 3, *[True] * 3, False, False]]


def test_the_published_sizes_give_66_places_a_frame() -> None:
    processor: Any = load_processor(kept_folder(plan_case("cogvlm2-llama3-caption")))
    row = prepare(processor, clips("video", 1, frames=3)[0])
    assert row.count.tokens == 3 * 66
    assert row.inputs["pixel_values_videos"].shape == (3, 3, 224, 224)
    assert processor.tokenizer.pad_token_id == 128001
    assert processor.video_token_id == 128002


def test_a_folder_without_a_tokenizer_fails_in_one_line(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(published(), folder)
    for path in folder.glob("tokenizer*"):
        path.unlink()
    with pytest.raises(UsageError, match="has no processor that can be loaded") as caught:
        load_processor(folder)
    assert "\n" not in str(caught.value)
