"""Several prompts of one chunk: what they have in common is read once, and each says what it says
by itself."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from penstock_demo import CHECKPOINT
from stages.decode.engines import SHARED
from stages.decode.engines.inflight import prefix
from stages.decode.engines.inflight.reading import read_row
from stages.decode.run import run
from tests.support.checkpoints import whole_checkpoint
from tests.support.clips import clips
from tests.support.families import BUILDERS, checkpoint
from tests.support.waves import CAPTIONS, Wave, events

PROMPTS = (
    "Describe.",
    "What happens in it?",
    "Say in one long sentence what you see, from the left to the right.",
    "Who?",
)
OTHER, THIRD = "dd" * 32, "ee" * 32


def folder_of(name: str) -> Path:
    if name == "demo":
        return CHECKPOINT
    return checkpoint(name) if name in BUILDERS else whole_checkpoint(name)


def members(wave: Wave, prompts: Sequence[str]) -> list[dict[str, str]]:
    """What is asked of every clip."""
    return [
        {"key": f"{n}-{p}", "features": f"features-{n}", "kind": clip.kind, "prompt": prompt}
        for n, clip in wave.batches[0]
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
    noted = {n: v for event in told if event["event"] == "note" for n, v in event.items()}
    return {each["key"]: found.meta(each["key"]) for each in asked}, noted


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["image", "video"])
@pytest.mark.parametrize("name", (*BUILDERS, "gemma3", "demo"))
def test_prompts_that_share_a_picture_say_what_each_says_alone(
    name: str, kind: str, tmp_path: Path
) -> None:
    wave = Wave(tmp_path, folder_of(name), [clips(kind, 3)])
    wave.encode()
    asked = members(wave, PROMPTS)
    plain, _ = said(wave, "transformers", CAPTIONS, asked, size=1)
    shared, noted = said(wave, SHARED, OTHER, asked)
    assert {k: v["caption"] for k, v in shared.items()} == {
        k: v["caption"] for k, v in plain.items()
    }
    assert noted["shared_prefix"] is True


@pytest.mark.parametrize("dtype", ["bfloat16", pytest.param("float32", marks=pytest.mark.slow)])
def test_bytes_hang_on_the_row_alone(dtype: str, tmp_path: Path) -> None:
    wave = Wave(tmp_path, CHECKPOINT, [clips("video", 3, frames=8)], dtype=dtype)
    wave.encode()
    asked = members(wave, PROMPTS)
    whole, noted = said(wave, SHARED, CAPTIONS, asked)
    assert noted["shared_prefix"] is True
    mixed, _ = said(wave, SHARED, OTHER, asked[::-1], size=5)
    alone, _ = said(wave, SHARED, THIRD, asked[5:6])
    assert mixed == whole and alone[asked[5]["key"]] == whole[asked[5]["key"]]


def test_a_picture_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wave = Wave(tmp_path, CHECKPOINT, [clips("video", 3)])
    wave.encode()
    lengths: list[int] = []

    def counting(half: Any, inputs: Any, features: Any, **options: Any) -> Any:
        row = read_row(half, inputs, features, **options)
        before = options.get("past_key_values")
        lengths.append(row.tokens if before is None else 0)
        return row

    monkeypatch.setattr(prefix, "read_row", counting)
    asked = members(wave, PROMPTS)
    said(wave, SHARED, CAPTIONS, [asked[at] for at in torch.randperm(len(asked))])
    # Once for each clip, and once for the trial, where another clip follows it.
    assert sum(length > 0 for length in lengths) in (3, 4)
    assert sum(length == 0 for length in lengths) == 2 + len(asked)
