"""Captions made in two stages with a store between are those of the whole model."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from artifacts.errors import EnvironmentFault
from artifacts.pack_object import DamagedRecord
from artifacts.packs import Record
from penstock_demo import CHECKPOINT
from stages.decode.engines import transformers
from stages.models.halves.delivery import new_tokens
from stages.models.processors.prepare import Clip, load_processor
from tests.support.clips import PROMPTS, clips, joint_inputs, joint_model
from tests.support.families import BUILDERS, checkpoint
from tests.support.waves import CAPTIONS, FEATURES, Wave, keys_told
from tests.test_stages_decode_inflight import OTHER, THIRD, wave_of


def joint_captions(folder: Path, batch: list[Clip], prompts: tuple[str, ...]) -> list[str]:
    """What the whole model says of a batch, greedily."""
    processor = load_processor(folder)
    inputs = joint_inputs(processor, batch, [prompts[n % 4] for n in range(len(batch))])
    with torch.inference_mode():
        tokens = joint_model(folder).generate(**inputs, do_sample=False, max_new_tokens=8)
    texts: list[str] = processor.batch_decode(
        tokens[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True
    )
    return [text.strip() for text in texts]


def said(found: list[dict[str, Any]]) -> list[str]:
    return [caption["caption"] for caption in found]


@pytest.mark.parametrize("kind", ["image", "video"])
@pytest.mark.parametrize("family", BUILDERS)
def test_captions_through_the_store_are_those_of_the_whole_model(
    family: str, kind: str, tmp_path: Path
) -> None:
    folder = checkpoint(family)
    batch = clips(kind, 4)
    wave = Wave(tmp_path / "store", folder, [batch])
    wave.encode()
    told = wave.decode(PROMPTS)
    found = wave.captions()
    assert said(found) == joint_captions(folder, batch, PROMPTS)
    assert len(set(said(found))) > 1
    assert keys_told(told) == [f"caption-{n}" for n in range(4)]
    tokens = [event["tokens"] for event in told if event["event"] == "item"]
    assert tokens == [caption["tokens"] for caption in found]
    assert all(0 < count <= 8 for count in tokens)


def test_a_new_prompt_needs_neither_frames_nor_the_vision_half(tmp_path: Path) -> None:
    folder = checkpoint("qwen2_5_vl")
    batch = clips("video", 2)
    wave = Wave(tmp_path / "store", folder, [batch])
    wave.encode()
    wave.record_set("frames", "aa" * 32).drop(["frames-0", "frames-1"])
    other = ("Name every colour.",) * 4
    wave.decode(other, namespace="dd" * 32)
    assert said(wave.captions("dd" * 32)) == joint_captions(folder, batch, other)


def test_images_and_videos_share_a_wave(tmp_path: Path) -> None:
    folder = checkpoint("qwen3_vl")
    images, videos = clips("image", 2), clips("video", 2)
    wave = Wave(tmp_path / "store", folder, [[images[0], videos[0], images[1], videos[1]]])
    wave.encode()
    wave.decode(("Describe.",))
    same = ("Describe.",) * 4
    wanted = [*joint_captions(folder, images, same), *joint_captions(folder, videos, same)]
    found = said(wave.captions())
    assert [found[0], found[2], found[1], found[3]] == wanted


def test_rows_of_unlike_length_share_a_batch(tmp_path: Path) -> None:
    folder = checkpoint("qwen2_5_vl")
    batch = [*clips("video", 2), *clips("video", 1, frames=8), *clips("video", 1, height=80)]
    wave = Wave(tmp_path / "store", folder, [batch])
    wave.encode()
    wave.decode(PROMPTS)
    assert said(wave.captions()) == joint_captions(folder, batch, PROMPTS)


def test_a_resumed_batch_publishes_only_what_is_missing(tmp_path: Path) -> None:
    wave = Wave(tmp_path / "store", checkpoint("qwen2_5_vl"), [clips("video", 3)])
    wave.encode()
    wave.decode(PROMPTS)
    before = wave.captions()
    resumed = "dd" * 32
    kept = wave.record_set("captions", CAPTIONS).read("caption-1")
    wave.record_set("captions", resumed).publish([kept])
    assert keys_told(wave.decode(PROMPTS, resumed)) == ["caption-0", "caption-2"]
    assert wave.captions(resumed) == before
    assert wave.decode(PROMPTS, resumed) == [{"event": "total", "items": 0}]


def test_a_checkpoint_that_samples_is_decoded_greedily(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(checkpoint("llava"), folder)
    settings = json.loads((folder / "generation_config.json").read_text())
    settings |= {"do_sample": True, "temperature": 9.0, "top_k": 50, "top_p": 0.9}
    (folder / "generation_config.json").write_text(json.dumps(settings))
    batch = clips("image", 2)
    wave = Wave(tmp_path / "store", folder, [batch])
    wave.encode()
    wave.decode(PROMPTS)
    assert said(wave.captions()) == joint_captions(checkpoint("llava"), batch, PROMPTS)


def test_a_batch_ends_when_every_row_has_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "model"  # whose settings say nothing of an end
    shutil.copytree(CHECKPOINT, folder)
    (folder / "generation_config.json").unlink()
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["eos_token_id"] = None
    (folder / "config.json").write_text(json.dumps(config))
    noise, other = clips("video", 2, frames=8, height=64)
    dark = replace(other, frames=other.frames * np.uint8(0))
    wave = Wave(tmp_path / "store", CHECKPOINT, [[dark, noise]])
    wave.encode()
    wave.decode(("Describe this video in detail.",), tokens=128)
    made: list[int] = []

    def counting(*given: Any) -> torch.Tensor:
        new = new_tokens(*given)
        made.append(new.shape[1])
        return new

    monkeypatch.setattr(transformers, "new_tokens", counting)
    wave.model = str(folder)
    wave.decode(("Describe this video in detail.",), namespace="dd" * 32, tokens=128)
    found = wave.captions("dd" * 32)
    assert found == wave.captions()
    counts = [caption["tokens"] for caption in found]
    assert made == [max(counts)] and min(counts) < max(counts) < 128


def test_a_caption_says_whether_it_was_cut(tmp_path: Path) -> None:
    noise, other = clips("video", 2, frames=8, height=64)
    dark = replace(other, frames=other.frames * np.uint8(0))
    wave = Wave(tmp_path / "store", CHECKPOINT, [[dark, noise]])
    wave.encode()
    prompt = ("Describe this video in detail.",)
    wave.decode(prompt, tokens=128)
    whole = wave.captions()
    assert {caption["ended"] for caption in whole} == {"stop"}
    short, long = sorted(caption["tokens"] for caption in whole)
    assert short < long
    wave.decode(prompt, namespace="dd" * 32, tokens=short)
    for cut, caption in zip(wave.captions("dd" * 32), whole, strict=True):
        assert cut["tokens"] == short
        assert cut["ended"] == ("stop" if caption["tokens"] == short else "length")
        assert caption["caption"].startswith(cut["caption"])


def test_features_that_are_gone_fail(tmp_path: Path) -> None:
    wave = Wave(tmp_path / "store", checkpoint("llava"), [clips("image", 1)])
    wave.encode()
    wave.record_set("features", FEATURES).drop(["features-0"])
    with pytest.raises(EnvironmentFault, match="no longer in the store"):
        wave.decode(PROMPTS)


def test_features_of_another_version_are_set_aside_to_be_made_anew(tmp_path: Path) -> None:
    batch = clips("image", 3)
    wave = Wave(tmp_path / "store", checkpoint("llava"), [batch[:2], batch[2:]])
    wave.encode()
    record_set = wave.record_set("features", FEATURES)
    records = [record_set.read(f"features-{n}") for n in range(3)]
    record_set.drop(record_set.keys())
    old = [
        Record(
            key=record.key,
            meta=json.loads(json.dumps(record.meta).replace("BaseModelOutput", "OldOutput")),
            payload=bytes(record.payload),
        )
        for record in records
    ]
    assert all(before.meta != after.meta for before, after in zip(old, records, strict=True))
    record_set.publish(old[:2])
    record_set.publish(old[2:])
    with pytest.raises(DamagedRecord, match="OldOutput"):
        wave.decode(PROMPTS)
    assert wave.record_set("features", FEATURES).keys() == set()
    assert list((tmp_path / "store" / "quarantine").rglob("*.pack"))
    assert keys_told(wave.encode()) == ["features-0", "features-1", "features-2"]
    wave.decode(PROMPTS)
    assert all(said(wave.captions()))


@pytest.mark.parametrize("engine", ["transformers", "inflight"])
def test_a_prompt_that_exceeds_the_context_fails_alone_before_it_is_read(
    engine: str, tmp_path: Path
) -> None:
    wave = wave_of(tmp_path, 10)
    wave.settings |= {"engine": engine}
    wave.decode(PROMPTS, OTHER)
    long = "Tell me what is there. " * 4000
    told = wave.decode([*PROMPTS, *PROMPTS, PROMPTS[0], long])
    (failed,) = [event for event in told if event["event"] == "failure"]
    assert (failed["media"], failed["kind"]) == ("caption-9", "too-long")
    assert "context is 2,048 tokens" in failed["message"] and failed["hint"]
    assert set(keys_told(told)) == {f"caption-{n}" for n in range(9)}
    captions, other = (wave.record_set("captions", name) for name in (CAPTIONS, OTHER))
    for n in range(8):  # the ninth has another prompt than it had
        key = f"caption-{n}"
        assert captions.meta(key)["caption"] == other.meta(key)["caption"]
    alone = wave.decode([long], THIRD)
    assert {event["media"] for event in alone if event["event"] == "failure"} == {
        f"caption-{n}" for n in range(10)
    }
    again = wave.decode([long], THIRD)
    assert not [event for event in again if event["event"] in ("failure", "item")]
