"""Several prompts of one chunk: what they have in common is read once, and each says what it says
by itself."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from penstock_demo import CHECKPOINT
from stages.decode.engines.inflight import prefill
from stages.decode.engines.inflight.prefill import prefill_row
from stages.decode.run import run
from tests.support.clips import clips
from tests.support.waves import (
    CAPTIONS,
    OTHER,
    THIRD,
    Wave,
    encoded_wave,
    events,
    folder_of,
    noted,
)

PROMPTS = (
    "Describe.",
    "What happens in it?",
    "Say in one long sentence what you see, from the left to the right.",
    "Who?",
)
CASES = [
    ("qwen2_5_vl", "video"),
    ("qwen3_vl", "image"),
    ("llava", "image"),
    ("llava_onevision", "video"),
    ("smolvlm", "image"),
    ("gemma3", "image"),
    ("demo", "video"),
]


def members(wave: Wave, prompts: Sequence[str]) -> list[dict[str, str]]:
    """What is asked of every clip."""
    return [
        {"key": f"{n}-{p}", "features": f"features-{n}", "prompt": prompt}
        for n, _ in wave.batches[0]
        for p, prompt in enumerate(prompts)
    ]


def said(
    wave: Wave, engine: str, namespace: str, asked: list[dict[str, str]], size: int = 4
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the stage says of each key, and what it notes."""
    wave.settings["engine"] = engine
    job = wave.to_decode(["?"], namespace, tokens=12)
    job["batches"] = [asked[at : at + size] for at in range(0, len(asked), size)]
    with events() as (report, told):
        run(job, report)
    found = wave.record_set("captions", namespace)
    return {each["key"]: found.meta(each["key"]) for each in asked}, noted(told)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "kind"), CASES)
def test_prompts_that_share_a_picture_say_what_each_says_alone(
    name: str, kind: str, tmp_path: Path
) -> None:
    wave = encoded_wave(tmp_path, folder_of(name), clips(kind, 3))
    asked = members(wave, PROMPTS)
    plain, _ = said(wave, "transformers", CAPTIONS, asked, size=1)
    shared, notes = said(wave, "inflight-shared", OTHER, asked)
    assert {k: v["caption"] for k, v in shared.items()} == {
        k: v["caption"] for k, v in plain.items()
    }
    assert notes["shared_prefix"] is True


def test_bytes_hang_on_the_row_alone(tmp_path: Path) -> None:
    wave = encoded_wave(tmp_path, CHECKPOINT, clips("video", 2), dtype="bfloat16")
    asked = members(wave, PROMPTS)
    whole, notes = said(wave, "inflight-shared", CAPTIONS, asked)
    assert notes["shared_prefix"] is True
    mixed, _ = said(wave, "inflight-shared", OTHER, asked[::-1], size=5)
    alone, _ = said(wave, "inflight-shared", THIRD, asked[5:6])
    assert mixed == whole and alone[asked[5]["key"]] == whole[asked[5]["key"]]


def test_a_picture_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wave = encoded_wave(tmp_path, CHECKPOINT, clips("video", 3))
    lengths: list[int] = []

    def counting(half: Any, inputs: Any, features: Any, **options: Any) -> Any:
        row = prefill_row(half, inputs, features, **options)
        before = options.get("past_key_values")
        lengths.append(row.tokens if before is None else 0)
        return row

    monkeypatch.setattr(prefill, "prefill_row", counting)
    asked = members(wave, PROMPTS)
    said(wave, "inflight-shared", CAPTIONS, [asked[at] for at in torch.randperm(len(asked))])
    # Once for each clip, and once for the trial, where another clip follows it.
    assert sum(length > 0 for length in lengths) in (3, 4)
    assert sum(length == 0 for length in lengths) == 2 + len(asked)
