"""The features that a plan expects are those that the encode stage stores."""

import math
from pathlib import Path

import pytest
import torch

from artifacts.records.eight_bits import INT8_64, namespace_in, pack_vectors, unpack_vectors
from artifacts.records.tensors import pack_again
from flows.core.options.commands import CaptionConfig
from stages.decode.protocol import read_features
from stages.encode.run import run as encode_stage
from stages.memory.meta_device import tensors
from stages.models.halves.features import encode
from tests.support.clips import clips, profile_of
from tests.support.families import qwen3_vl
from tests.support.keys import model_of
from tests.support.tiny_families import FAMILIES
from tests.support.waves import FEATURES, Wave, encoded_wave, folder_of, told_by

EDGE, FRAMES = 224, 6
EVERY = (
    "blip_2", "florence2", "gemma3", "glm4v", "instructblip", "instructblipvideo", "internvl",
    "llama4", "llava", "llava_next", "llava_onevision", "paligemma", "perception_lm",
    "qwen2_5_vl", "qwen3_vl", "smolvlm",
)  # fmt: skip
QUICK = ("qwen3_vl", "instructblipvideo")
ROUNDED_UP = {("llava_onevision", "video"): 1.2}
"""Family and kind → how much too large a plan is for a tiny checkpoint: one token behind all frames
counts for two of them."""


def check(folder: Path, family: str) -> None:
    path = folder_of(family)
    profile = profile_of(path)
    model = model_of(profile, CaptionConfig(sources=(".",), precision="fp32"))
    for kind in profile.modalities:
        frames = FRAMES if kind == "video" else 1
        fit = profile.fit_image if kind == "image" else profile.fit_video
        size = fit.size(EDGE, EDGE)
        wave = encoded_wave(folder / kind, path, clips(kind, 1, frames, *size))
        record = read_features(wave.record_set("features", FEATURES), "features-0")
        stored = sum(tensor.nbytes for tensor in tensors(record.features))
        planned = model.feature_bytes(kind, frames, size)
        assert 0.98 * planned <= stored <= 1.02 * planned or (
            stored <= planned <= ROUNDED_UP.get((family, kind), 0) * stored
        ), (kind, stored, planned)


@pytest.mark.parametrize("family", QUICK)
def test_a_plan_expects_what_is_stored(family: str, tmp_path: Path) -> None:
    check(tmp_path, family)


@pytest.mark.parametrize("width", [64, 136])
def test_levels_of_features_in_8_bits_are_as_expected_on_disk_and_restored_in_memory(
    width: int, tmp_path: Path
) -> None:
    qwen3_vl(tmp_path / "model", width)
    config = CaptionConfig(sources=(".",), precision="bf16", features_as=INT8_64)
    model = model_of(profile_of(tmp_path / "model"), config)
    size = model.profile.fit_video.size(EDGE, EDGE)
    made = clips("video", 2, FRAMES, *size)
    wave = Wave(tmp_path / "store", tmp_path / "model", [made], dtype="bfloat16")
    for form in ("", INT8_64):
        told_by(encode_stage, {**wave.to_encode(), "namespace": namespace_in(form, FEATURES)})
    records = [wave.record_set("features", namespace_in(form, FEATURES)) for form in ("", INT8_64)]
    plain, packed = (record_set.read("features-0") for record_set in records)
    rows = [tensors(read_features(record_set, "features-0").features) for record_set in records]
    for computed, restored in zip(*map(list, rows), strict=True):
        assert (restored.dtype, restored.shape) == (torch.bfloat16, computed.shape)
        expected = unpack_vectors(*pack_vectors(computed), torch.bfloat16)
        assert torch.equal(restored, expected) and not torch.equal(restored, computed)
    assert pack_again(plain.meta["tree"], plain.payload, INT8_64) == (
        packed.meta["tree"],
        packed.payload,
    )
    levels = [*tensors(read_features(records[0], "features-0").features)]
    stored = sum(t.numel() + 2 * t.shape[0] * math.ceil(width / 64) for t in levels)
    assert len(levels) == 3 and stored <= len(packed.payload) <= stored + 64 * 10
    assert model.feature_bytes("video", FRAMES, size) == pytest.approx(stored, rel=0.02)
    in_memory = sum(tensor.nbytes for tensor in levels)
    assert model.restored_bytes("video", FRAMES, size) == pytest.approx(in_memory, rel=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("family", sorted({*EVERY} - {*QUICK}))
def test_a_plan_expects_what_is_stored_of_every_family(family: str, tmp_path: Path) -> None:
    check(tmp_path, family)


@pytest.mark.parametrize("family", ["deepseek_vl_hybrid", "granite4_vision"])
def test_hidden_states_that_nobody_reads_are_not_kept(family: str) -> None:
    model, inputs = FAMILIES[family]()
    names = {name for record in encode(model.eval(), inputs).values() for name in record}
    assert names and not [name for name in names if "hidden_state" in name]
