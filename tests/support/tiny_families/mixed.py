"""Prompts that are harder than one picture each: an image and a video, unlike numbers of pictures,
a row without any."""

from collections.abc import Sequence
from typing import Any

import torch

from tests.support.tiny_families.coded import perceiving
from tests.support.tiny_families.grids import DEEP, TALL, TURNED, WINDOWS
from tests.support.tiny_families.parts import (
    END,
    FAMILIES,
    IMAGE,
    INDEX,
    INDICES,
    PINPOINTS,
    START,
    TOKENS,
    VIDEO,
    Built,
    clip,
    config_of,
    count,
    decisive,
    features_of,
    llama,
    model_of,
    noise,
    patches,
    prompt_inputs,
    siglip,
    text,
)
from tests.support.tiny_families.shared import QWEN_2, tiles

Grid = list[int]
"""Steps, height and width in patches."""


def image(places: int) -> list[int]:
    return [START, *[IMAGE] * places, END]


def video(places: int, groups: int = 1) -> list[int]:
    return [START, *[VIDEO] * (places // groups), END] * groups


def rows(
    model: Any, prompts: Sequence[list[int]], pixels: dict[str, Any], typed: bool = True
) -> Built:
    inputs = {**prompt_inputs(prompts), **pixels}
    if typed:
        ids = inputs["input_ids"]
        inputs["mm_token_type_ids"] = (ids == IMAGE).long() + 2 * (ids == VIDEO).long()
    return decisive(model), inputs


def streams(images: Sequence[Grid], videos: Sequence[Grid] = ()) -> dict[str, Any]:
    """Patches and grids of images and videos."""
    found: dict[str, Any] = {}
    for prefix, suffix, grids in (("image", "", images), ("video", "_videos", videos)):
        if grids:
            grid = torch.tensor(grids)
            found[f"pixel_values{suffix}"] = torch.randn(int(grid.prod(-1).sum()), 96)
            found[f"{prefix}_grid_thw"] = grid
    return found


def timed() -> Any:
    return model_of(config_of("Qwen2_5_VL", TURNED, patches(**WINDOWS), **TOKENS))


def deep() -> Any:
    return model_of(config_of("Qwen3VL", text(**TALL), DEEP, **TOKENS))


def plain() -> Any:
    return model_of(config_of("Llava", llama(), clip(), **INDEX))


def both_timed() -> Built:
    seconds = {"second_per_grid_ts": torch.tensor([1.0])}
    pixels = {**streams([[1, 4, 4]], [[2, 4, 4]]), **seconds}
    return rows(timed(), [[1, *image(4), 5, 6, *video(8), 7]], pixels)


def both_deep() -> Built:
    pixels = streams([[1, 4, 4]], [[2, 4, 4]])
    return rows(deep(), [[1, *image(4), 5, 6, *video(8, 2), 7]], pixels)


def uneven(model: Any) -> Built:
    prompts = [[1, *image(4), 5, 6, *image(8), 7], [1, *image(16), 8]]
    return rows(model, prompts, streams([[1, 4, 4], [1, 4, 8], [1, 8, 8]]))


def deep_with_a_row_of_text() -> Built:
    return rows(deep(), [[1, *image(4), 5, 6], [1, 8, 9, 10]], streams([[1, 4, 4]]))


def plain_uneven() -> Built:
    prompts = [[1, *[IMAGE] * 16, 5, *[IMAGE] * 16, 6, 7], [1, *[IMAGE] * 16, 8]]
    return rows(plain(), prompts, {"pixel_values": noise(3)}, typed=False)


def plain_with_a_row_of_text() -> Built:
    prompts = [[1, *[IMAGE] * 16, 5, 6], [1, 8, 9, 10]]
    return rows(plain(), prompts, {"pixel_values": noise(1)}, typed=False)


def both_tiled() -> Built:
    pinpoints = {"image_grid_pinpoints": PINPOINTS}
    model = model_of(config_of("LlavaOnevision", QWEN_2, siglip(), **pinpoints, **INDICES))
    pixels = {**tiles(1), "pixel_values_videos": torch.randn(1, 3, 3, 32, 32)}
    places = [count(features_of(model, kind, pixels)) for kind in ("image", "video")]
    prompt = [1, *[IMAGE] * places[0], 5, *[VIDEO] * places[1], 6, 7]
    return rows(model, [prompt], pixels, typed=False)


def both_together() -> Built:
    model = model_of(config_of("VideoLlava", llama(), clip(), **INDICES))
    pixels = {"pixel_values_images": noise(1), "pixel_values_videos": noise(1, 32, 8)}
    prompt = [1, *[IMAGE] * 16, 5, *[VIDEO] * (17 * 8), 6]
    return rows(model, [prompt], pixels, typed=False)


def both_through_one_encoder() -> Built:
    model = model_of(perceiving())
    pixels = {"pixel_values": noise(1, 32, 1), "pixel_values_videos": noise(1, 32, 3)}
    return rows(model, [[1, *[IMAGE] * 4, 5, *[VIDEO] * 12, 6]], pixels, typed=False)


FAMILIES |= {
    "qwen2_5_vl:mixed": both_timed,
    "qwen3_vl:mixed": both_deep,
    "qwen2_5_vl:uneven": lambda: uneven(timed()),
    "qwen3_vl:uneven": lambda: uneven(deep()),
    "qwen3_vl:textrow": deep_with_a_row_of_text,
    "llava:uneven": plain_uneven,
    "llava:textrow": plain_with_a_row_of_text,
    "llava_onevision:mixed": both_tiled,
    "video_llava:mixed": both_together,
    "perception_lm:mixed": both_through_one_encoder,
}
