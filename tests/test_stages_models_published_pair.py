"""The text of a video as published where transformers writes a second pair of vision tokens around
it: ids of a processor of published sizes."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stages.models.processors.calling import text_ids
from stages.models.processors.loading import load_processor
from stages.models.processors.prepare import Clip, prepare, rebuild
from tests.support.families import VISION_MARKS, hf, tokenizer

TEMPLATE = (
    "{% for m in messages %}{% for c in m['content'] %}{% if c['type'] == 'text' %}{{ c['text'] }}"
    "{% else %}U<|vision_start|><|{{ c['type'] }}_pad|><|vision_end|>{% endif %}{% endfor %}"
    "{% endfor %}{% if add_generation_prompt %} A{% endif %}"
)
FRAMES, RATE = 8, 2
PATCHES = 22 * 40
"""Of a frame of 360 x 640 pixels."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The processor of the published Qwen3-VL, its words bytes, and the release in its config."""
    made = tmp_path_factory.mktemp("qwen3_vl")
    words = tokenizer((*VISION_MARKS, "<|image_pad|>", "<|video_pad|>"), TEMPLATE)
    common: dict[str, Any] = {"patch_size": 16, "temporal_patch_size": 2, "merge_size": 2}
    hf.Qwen3VLProcessor(
        image_processor=hf.Qwen2VLImageProcessor(
            size={"shortest_edge": 65536, "longest_edge": 16777216}, **common
        ),
        tokenizer=words,
        video_processor=hf.Qwen3VLVideoProcessor(
            size={"shortest_edge": 4096, "longest_edge": 25165824},
            cap_pixels_per_frame=False,
            **common,
        ),
        chat_template=TEMPLATE,
    ).save_pretrained(made)
    config = {"model_type": "qwen3_vl", "transformers_version": "4.57.0.dev0"}
    (made / "config.json").write_text(json.dumps(config))
    return made


def ids_of(folder: Path, as_published: bool | None) -> tuple[list[int], Any]:
    """The tokens of a prompt about four seconds of video, and the tokenizer."""
    processor = load_processor(folder, as_published=as_published)
    clip = Clip(
        frames=np.zeros((FRAMES, 360, 640, 3), np.uint8),
        times=tuple(index / RATE for index in range(FRAMES)),
        seconds=FRAMES / RATE,
        kind="video",
    )
    row = prepare(processor, clip)
    return text_ids(rebuild(processor, [row], ["D"]))[0].tolist(), processor.tokenizer


def test_no_pair_stands_around_the_pairs_of_the_frames(folder: Path) -> None:
    ids, words = ids_of(folder, None)
    stock, _ = ids_of(folder, False)
    start, end = (words.convert_tokens_to_ids(mark) for mark in VISION_MARKS)
    assert (len(ids), ids.count(start), ids.count(end)) == (944, 4, 4)
    assert (len(stock), stock.count(start), stock.count(end)) == (946, 5, 5)
    first, last = stock.index(start), len(stock) - 1 - stock[::-1].index(end)
    assert ids == [*stock[:first], *stock[first + 1 : last], *stock[last + 1 :]]
    assert ids_of(folder, True)[0] == ids
    seen = "<|video_pad|>" * (PATCHES // 4)
    frames = [
        f"<{time} seconds><|vision_start|>{seen}<|vision_end|>" for time in (0.2, 1.2, 2.2, 3.2)
    ]
    assert words.decode(ids) == "".join(["U", *frames, "D A"])
