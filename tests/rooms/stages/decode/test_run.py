"""Captions made in two stages with a store between are those of the whole model, whichever engine
makes them and however prompts are read."""

import json
import shutil
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from artifacts.errors import EnvironmentFault, UsageError
from artifacts.records.packs import DamagedRecord, Record, RecordSet
from artifacts.records.store import open_store
from artifacts.texts.captions import CONFIDENCE
from penstock_demo import CHECKPOINT
from stages.decode.engines import transformers
from stages.decode.generation import DecodeItem, DecodeJob
from stages.decode.protocol import longest_first, rebatch
from stages.decode.run import open_records
from stages.models.half_job import HalfJob
from stages.models.halves.generate import new_tokens
from stages.models.processors.blank_clips import Clip
from stages.models.processors.loading import load_processor
from tests.support.builders.words import hf
from tests.support.checkpoints import whole_checkpoint
from tests.support.clips import PROMPTS, clips, joint_inputs, joint_model
from tests.support.families import BUILDERS, checkpoint, decisive
from tests.support.hostile import with_json
from tests.support.tiny_families.queries import T5
from tests.support.waves import (
    CAPTIONS,
    FEATURES,
    FRAMES,
    OTHER,
    THIRD,
    Wave,
    captions_of,
    encoded_wave,
    keys_told,
    mixed_wave,
    noted,
    words,
)

QUICK = {("qwen2_5_vl", "video"), ("llava", "image")}
CASES = [
    pytest.param(*case, marks=[] if case in QUICK else pytest.mark.slow)
    for case in product(BUILDERS, ("image", "video"))
]


def joint_captions(folder: Path, batch: list[Clip], prompts: tuple[str, ...]) -> list[str]:
    """What the whole model says of a batch, greedily."""
    processor = load_processor(folder)
    inputs = joint_inputs(processor, batch, prompts[: len(batch)])
    with torch.inference_mode():
        tokens = joint_model(folder).generate(**inputs, do_sample=False, max_new_tokens=8)
    new = tokens[:, inputs["input_ids"].shape[1] :]
    return [text.strip() for text in processor.batch_decode(new, skip_special_tokens=True)]


@pytest.mark.in_turn
@pytest.mark.parametrize(("family", "kind"), CASES)
def test_captions_through_the_store_are_those_of_the_whole_model(
    family: str, kind: str, tmp_path: Path
) -> None:
    folder, batch = checkpoint(family), clips(kind, 4)
    wave = encoded_wave(tmp_path, folder, batch)
    message = wave.decode(PROMPTS)
    found = wave.captions()
    assert captions_of(found) == joint_captions(folder, batch, PROMPTS)
    assert len(set(captions_of(found))) > 1
    assert keys_told(message) == [f"caption-{n}" for n in range(4)]
    tokens = [event["tokens"] for event in message if event["event"] == "Answered"]
    assert tokens == [caption["tokens"] for caption in found]
    assert all(0 < count <= 8 for count in tokens)
    stated = {"caption", "tokens", "ended", "engine", "engine_version"}
    assert found[0].keys() == {*stated, *CONFIDENCE}
    assert (found[0]["engine"], found[0]["engine_version"]) == ("transformers", 1)

    wave.settings["prefill"] = 5
    assert noted(wave.decode(PROMPTS, OTHER))["prefill_way"] == "generate"
    assert captions_of(wave.captions(OTHER)) == captions_of(found)

    wave.settings = {"engine": "inflight"}
    assert noted(wave.decode(PROMPTS, THIRD))["engine"] == "inflight"
    in_slots = wave.captions(THIRD)
    assert words(in_slots) == words(found)
    assert (in_slots[0]["engine"], in_slots[0]["engine_version"]) == ("inflight", 1)


def with_an_encoder(folder: Path) -> Path:
    """BLIP-2 with a reader of the T5 kind, whose output differs in slots."""
    shutil.copytree(whole_checkpoint("blip_2"), folder)
    before: Any = hf.AutoConfig.from_pretrained(folder)
    config = hf.Blip2Config(
        vision_config=before.vision_config.to_dict(),
        qformer_config=before.qformer_config.to_dict(),
        text_config=T5 | {"vocab_size": before.text_config.vocab_size, "eos_token_id": 1},
        num_query_tokens=before.num_query_tokens,
        image_token_index=before.image_token_index,
    )
    decisive(hf.Blip2ForConditionalGeneration(config)).save_pretrained(folder)
    return folder


@pytest.mark.slow
def test_a_family_that_is_not_for_slots_is_decoded_in_batches(tmp_path: Path) -> None:
    model = with_an_encoder(tmp_path / "model")
    wave = encoded_wave(tmp_path / "store", model, *([clip] for clip in clips("image", 6)))
    wave.decode(PROMPTS)
    wave.settings |= {"engine": "auto", "slots": 8}
    stated = noted(wave.decode(PROMPTS, OTHER))
    assert stated["engine"] == "transformers"
    assert stated["engine_reason"].startswith("its output differs in slots")
    assert words(wave.captions(OTHER)) == words(wave.captions())
    assert len(set(captions_of(wave.captions()))) > 1


def test_an_engine_that_is_not_there_fails(tmp_path: Path) -> None:
    wave = Wave(tmp_path, CHECKPOINT, [clips("image", 1)], engine="steam")
    with pytest.raises(UsageError, match="engine is steam") as caught:
        wave.decode(PROMPTS)
    assert "transformers" in caught.value.hint


def test_a_new_prompt_needs_neither_frames_nor_the_vision_half(tmp_path: Path) -> None:
    folder, batch = checkpoint("qwen2_5_vl"), clips("video", 2)
    wave = encoded_wave(tmp_path / "store", folder, batch)
    wave.record_set("frames", FRAMES).drop(["frames-0", "frames-1"])
    other = ("Name every colour.",) * 4
    wave.decode(other, OTHER)
    assert captions_of(wave.captions(OTHER)) == joint_captions(folder, batch, other)


@pytest.mark.slow
def test_images_and_videos_of_unlike_length_share_a_batch(tmp_path: Path) -> None:
    folder = checkpoint("qwen3_vl")
    (image,), videos = clips("image", 1), clips("video", 2)
    (long,), (high,) = clips("video", 1, frames=8), clips("video", 1, height=80)
    batch = [videos[0], image, long, videos[1], high]
    wave = encoded_wave(tmp_path / "store", folder, batch)
    wave.decode(PROMPTS)
    alone = [joint_captions(folder, [clip], PROMPTS[n % 4 :]) for n, clip in enumerate(batch)]
    assert captions_of(wave.captions()) == [caption for (caption,) in alone]


def test_a_resumed_batch_publishes_only_what_is_missing(tmp_path: Path) -> None:
    wave = encoded_wave(tmp_path / "store", checkpoint("qwen2_5_vl"), clips("video", 3))
    wave.decode(PROMPTS)
    before = wave.captions()
    kept = wave.record_set("captions", CAPTIONS).read("caption-1")
    wave.record_set("captions", OTHER).publish([kept])
    assert keys_told(wave.decode(PROMPTS, OTHER)) == ["caption-0", "caption-2"]
    assert wave.captions(OTHER) == before
    assert wave.decode(PROMPTS, OTHER) == [{"event": "Total", "items": 0, "earlier": 0}]


@pytest.mark.slow
def test_a_batch_ends_when_every_row_has_ended_or_is_cut_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_end = {"eos_token_id": None}
    folder = with_json(tmp_path / "model", "config.json", lambda c: c["text_config"].update(no_end))
    (folder / "generation_config.json").unlink()
    noise, other = clips("video", 2, frames=8, height=64)
    dark = replace(other, frames=other.frames * np.uint8(0))
    wave = encoded_wave(tmp_path / "store", CHECKPOINT, [dark, noise])
    prompt = ("Describe this video in detail.",)
    wave.decode(prompt, tokens=128)
    whole = wave.captions()
    assert {caption["ended"] for caption in whole} == {"stop"}
    short, long = sorted(caption["tokens"] for caption in whole)
    made: list[int] = []

    def counting(*given: Any) -> torch.Tensor:
        new = new_tokens(*given)
        made.append(new.shape[1])
        return new

    monkeypatch.setattr(transformers, "new_tokens", counting)
    wave.model = str(folder)
    wave.decode(prompt, OTHER, tokens=128)
    assert wave.captions(OTHER) == whole
    assert made == [long] and short < long < 128
    wave.decode(prompt, THIRD, tokens=short)
    for cut, caption in zip(wave.captions(THIRD), whole, strict=True):
        assert cut["tokens"] == short
        assert cut["ended"] == ("stop" if caption["tokens"] == short else "length")
        assert caption["caption"].startswith(cut["caption"])


def test_features_that_are_gone_fail(tmp_path: Path) -> None:
    wave = encoded_wave(tmp_path / "store", checkpoint("llava"), clips("image", 1))
    wave.record_set("features", FEATURES).drop(["features-0"])
    with pytest.raises(EnvironmentFault, match="no longer in the store"):
        wave.decode(PROMPTS)


def test_features_of_another_version_are_set_aside_to_be_made_anew(tmp_path: Path) -> None:
    batch = clips("image", 3)
    wave = encoded_wave(tmp_path / "store", checkpoint("llava"), batch[:2], batch[2:])
    record_set = wave.record_set("features", FEATURES)
    old = []
    for record in [record_set.read(f"features-{n}") for n in range(3)]:
        meta = json.loads(json.dumps(record.meta).replace("BaseModelOutput", "OldOutput"))
        assert meta != record.meta
        old.append(Record(key=record.key, meta=meta, payload=bytes(record.payload)))
    record_set.drop(record_set.keys())
    record_set.publish(old[:2])
    record_set.publish(old[2:])
    with pytest.raises(DamagedRecord, match="OldOutput"):
        wave.decode(PROMPTS)
    assert wave.record_set("features", FEATURES).keys() == set()
    assert list((tmp_path / "store" / "quarantine").rglob("*.pack"))
    assert keys_told(wave.encode()) == ["features-0", "features-1", "features-2"]
    wave.decode(PROMPTS)
    assert all(captions_of(wave.captions()))


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["transformers", "inflight"])
def test_a_prompt_that_exceeds_the_context_fails_alone_before_it_is_read(
    engine: str, tmp_path: Path
) -> None:
    wave = mixed_wave(tmp_path)
    wave.settings |= {"engine": engine}
    wave.batches = [wave.batches[0][:4]]
    long = "Tell me what is there. " * 400
    message = wave.decode([*PROMPTS[:3], long], OTHER, tokens=32)
    (failed,) = [event for event in message if event["event"] == "Failed"]
    assert (failed["media"], failed["kind"]) == ("caption-3", "too-long")
    assert "context is 2,048 tokens" in failed["message"] and failed["hint"]
    assert set(keys_told(message)) == {f"caption-{n}" for n in range(3)}
    wave.batches = [wave.batches[0][:3]]
    assert captions_of(wave.captions(OTHER)) == captions_of(wave.captions())
    alone = wave.decode([long], THIRD)
    refused = [event["media"] for event in alone if event["event"] == "Failed"]
    assert sorted(refused) == [f"caption-{n}" for n in range(3)]
    again = wave.decode([long], THIRD)
    assert not [event for event in again if event["event"] in ("Failed", "Answered")]


def members(*keys: str) -> list[DecodeItem]:
    return [DecodeItem(key, "", "") for key in keys]


def keys(batches: Any) -> list[str]:
    return ["".join(member.key for member in batch) for batch in batches]


BATCHES = [members(*"abcd"), members(*"efg")]


def test_a_batch_is_cut_as_if_it_had_been_chosen_so() -> None:
    assert keys(rebatch(BATCHES, 2)) == ["ab", "cd", "ef", "g"]
    assert rebatch(BATCHES, 0) == BATCHES


def test_who_was_talkative_comes_first_and_after_those_of_whom_nothing_is_known() -> None:
    texts = {"a": 3, "b": 30, "d": 12, "f": 30}
    assert keys(longest_first(BATCHES, texts)) == ["bcef", "gda"]
    assert longest_first(BATCHES, {"z": 9}) == BATCHES


def test_a_failure_is_stored_for_each_engine_under_its_own_key(tmp_path: Path) -> None:
    item = DecodeItem("own", "features", "What?", fallback_key="other")
    half = HalfJob(model="", device="cpu", dtype="float32")
    names = {"features_namespace": FEATURES, "namespace": CAPTIONS, "fallback_namespace": OTHER}
    where: Any = {"store": str(tmp_path), "engine": "auto", **names}
    job = DecodeJob(half=half, batches=[[item]], max_new_tokens=1, **where)
    _, _, answers = open_records(job, open_store(job.store))
    answers.fail(item, {"kind": "model"})
    found = [RecordSet(open_store(job.store), "failures", n) for n in (CAPTIONS, OTHER)]
    assert [each.keys() for each in found] == [{"own"}, {"other"}]
    assert answers.missing([item]) == []
