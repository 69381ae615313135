"""What is known of a model before its weights are read is true, and what cannot be used is
refused."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors import safe_open

from artifacts.errors import EnvironmentFault, UsageError
from artifacts.frame_fit import FrameFit
from artifacts.records.keys import ContentDigests
from artifacts.records.store import open_store
from flows.core.checkpoint.models import open_model
from flows.core.checkpoint.profile_loading import custom_code_fields
from flows.core.machine.launch import DirectLauncher
from flows.core.options.commands import CaptionConfig
from penstock_demo import CHECKPOINT
from stages.models import ModelProfile, describe
from stages.models.halves.boundary import HALVES
from stages.models.hub.checkpoint import Checkpoint
from stages.models.hub.headers import read_headers
from stages.models.inspection import default_sampling, halves_of, run
from stages.models.processors.input_sizes import probe
from stages.models.processors.loading import load_processor
from stages.models.profile import SamplingProfile
from tests.support.checkpoints import whole_checkpoint
from tests.support.clips import half_model, joint_model, profile_of
from tests.support.families import change_config, change_weights, checkpoint, copy_of
from tests.support.hostile import copy_of_demo, with_json
from tests.support.tiny_families import FAMILIES
from tests.support.waves import events


@pytest.mark.slow
def test_the_demo_is_described_and_its_halves_are_its_whole_checkpoint() -> None:
    demo = profile_of(CHECKPOINT)
    assert demo.class_name == "Qwen2_5_VLForConditionalGeneration"
    assert demo.model_type == "qwen2_5_vl"
    assert demo.modalities == ("image", "video")
    assert demo.dtype == "bfloat16"
    assert demo.vision.attention == demo.language.attention == "sdpa"
    assert demo.vision.shards == demo.language.shards == ("model.safetensors",)
    assert demo.placeholders == ("<|image_pad|>", "<|video_pad|>")
    assert {"<|im_end|>", *demo.placeholders} <= set(demo.control_tokens)
    assert not any(word.isalpha() for word in demo.control_tokens)
    assert demo.feature_width > 0
    with safe_open(CHECKPOINT / "model.safetensors", "pt") as file:
        names = set(file.keys())
    vision, language = set(demo.vision.tensors), set(demo.language.tensors)
    assert vision | language == names
    assert not vision & language
    stored = demo.vision.stored_bytes + demo.language.stored_bytes
    assert 0 < (CHECKPOINT / "model.safetensors").stat().st_size - stored < 1 << 16


@pytest.mark.slow
def test_the_stage_tells_the_profile() -> None:
    for folder in (CHECKPOINT, whole_checkpoint("gemma3")):
        with events() as (report, message):
            run({"model": str(folder), "revision": None, "trust_remote_code": False}, report)
        assert ModelProfile.from_json(message[0]["profile"]) == profile_of(folder)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llava", "qwen3_vl"])
def test_a_profile_counts_what_each_half_loads(family: str) -> None:
    folder = checkpoint(family)
    profile = profile_of(folder)
    for keep in HALVES:
        loaded, half = half_model(folder, keep).num_parameters(), getattr(profile, keep)
        assert half.parameters == loaded
        assert half.stored_bytes == 4 * loaded
    assert profile.modalities == (("image",) if family == "llava" else ("image", "video"))


def test_what_lies_outside_of_unequal_layers_is_counted(tmp_path: Path) -> None:
    model = FAMILIES["glm4v_moe"]()[0]  # whose first layer is dense, and the others are not
    model.save_pretrained(tmp_path)
    headers = read_headers(Checkpoint(name="moe", folder=tmp_path))
    half = halves_of(model, headers)["language"]
    layers = [w for name, w in model.state_dict().items() if "language_model.layers." in name]
    assert half.outside_parameters == half.parameters - sum(map(torch.Tensor.numel, layers))
    assert half.layers * half.layer_parameters > half.stack_parameters


def test_shards_are_told_apart(tmp_path: Path) -> None:
    joint_model(checkpoint("llava")).save_pretrained(tmp_path, max_shard_size="40KB")
    own: Any = load_processor(checkpoint("llava"))
    own.save_pretrained(tmp_path)
    profile = describe(tmp_path)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())["weight_map"]
    for half in (profile.vision, profile.language):
        assert set(half.shards) == {index[name] for name in half.tensors}
        assert len(half.shards) < len(set(index.values()))


@pytest.mark.slow
def test_sampling_is_what_the_processor_states() -> None:
    assert profile_of(checkpoint("smolvlm")).sampling == SamplingProfile(fps=1.0, frames=16)
    found = profile_of(checkpoint("qwen3_vl")).sampling
    assert (found.fps, found.min_frames, found.max_frames) == (2.0, 2, 16)
    assert profile_of(checkpoint("llava")).sampling == SamplingProfile()


@pytest.mark.parametrize("stated", [0, 0.5, -1, float("inf"), float("nan"), "8", None])
def test_numbers_of_frames_that_cannot_be_are_not_taken_from_a_processor(stated: Any) -> None:
    part = SimpleNamespace(num_frames=stated, min_frames=stated, max_frames=stated)
    assert default_sampling(SimpleNamespace(video_processor=part)) == SamplingProfile()


@pytest.mark.slow
def test_a_processor_that_keeps_large_frames_gives_no_fit() -> None:
    processor = load_processor(checkpoint("qwen2_5_vl"))
    processor.image_processor.size = {"shortest_edge": 256, "longest_edge": 1 << 30}
    assert probe(processor, "image").fit == FrameFit()


def test_a_processor_that_refuses_probes_gives_no_fit() -> None:
    processor = load_processor(checkpoint("llava"))

    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("not today")

    processor.image_processor.resize = refuse
    assert probe(processor, "image").fit == FrameFit()


@pytest.mark.slow
def test_a_checkpoint_of_the_text_part_alone_or_without_weights_fails(tmp_path: Path) -> None:
    folder = copy_of("llava", tmp_path / "model")
    change_weights(folder, lambda old: {n: t for n, t in old.items() if "language_model" in n})
    with pytest.raises(UsageError, match="no weights of a vision half"):
        describe(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(UsageError, match="holds no model with weights"):
        describe(folder)


def test_a_configuration_that_is_no_json_fails(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(EnvironmentFault, match=r"config\.json cannot be used: it is no whole JSON"):
        describe(tmp_path)


@pytest.mark.parametrize("name", ["model.safetensors", "extra.bin"])
def test_a_weight_file_that_is_a_link_to_nowhere_is_named(name: str, tmp_path: Path) -> None:
    folder = copy_of("llava", tmp_path / "model")
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(tmp_path / "gone")
    config = CaptionConfig(sources=("none",), model=str(folder))
    digests, launcher = ContentDigests(tmp_path / "digests"), DirectLauncher(lambda *_: None)
    given: Any = {"store": open_store(str(tmp_path / "store")), "launcher": launcher}
    with pytest.raises(EnvironmentFault, match=f"{name} of model .* cannot be read"):
        open_model(config, digests=digests, device="cpu", **given)


def test_code_of_a_checkpoints_own_is_keyed_where_it_is_trusted(tmp_path: Path) -> None:
    folder = copy_of("llava", tmp_path / "model")
    assert custom_code_fields(folder, trusted=True) == []
    change_config(folder, auto_map={"AutoModelForCausalLM": "other/place--code.Model"})
    assert custom_code_fields(folder, trusted=True) != []
    assert custom_code_fields(folder, trusted=False) == []


LFS_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:%064d\nsize 1\n" % 0
DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "cut": lambda whole: whole[: len(whole) // 2],
    "cut by a byte": lambda whole: whole[:-1],
    "cut in the header": lambda whole: whole[:100],
    "empty": lambda whole: b"",
    "a pointer": lambda whole: LFS_POINTER,
    "no header": lambda whole: whole[:8] + b"x" * (len(whole) - 8),
    "another header": lambda whole: (2).to_bytes(8, "little") + b"[]",
}
"""What may have become of a file -> its bytes, made of what it should be."""


@pytest.mark.slow
@pytest.mark.parametrize("how", DAMAGE)
def test_weights_that_are_not_all_there_fail(how: str, tmp_path: Path) -> None:
    folder = copy_of("llava", tmp_path / "model")
    file = folder / "model.safetensors"
    file.write_bytes(DAMAGE[how](file.read_bytes()))
    with pytest.raises(EnvironmentFault, match=r"model\.safetensors is not a whole safetensors"):
        describe(folder)


@pytest.mark.parametrize(
    "text", ["{", "[]", "{}", '{"weight_map": 1}', '{"weight_map": {"a": []}}']
)
def test_an_index_that_is_none_fails(text: str, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(EnvironmentFault, match=r"index\.json is not a whole index"):
        read_headers(Checkpoint(name="x", folder=tmp_path))


def test_a_shard_that_is_missing_is_named(tmp_path: Path) -> None:
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(EnvironmentFault, match=r"model-00001-of-00002\.safetensors.* cannot be"):
        read_headers(Checkpoint(name="x", folder=tmp_path))


def test_a_chat_template_that_cannot_be_rendered_fails(tmp_path: Path) -> None:
    folder = copy_of("qwen2_5_vl", tmp_path / "model")
    processor: Any = load_processor(folder)
    processor.chat_template = processor.tokenizer.chat_template = "{{ nothing.at.all }}"
    processor.save_pretrained(folder)
    with pytest.raises(UsageError, match=r"chat_template\.jinja: .* cannot be rendered") as caught:
        describe(folder)
    assert "\n" not in str(caught.value)


def test_a_chat_template_that_cannot_be_parsed_is_a_damaged_file(tmp_path: Path) -> None:
    folder = copy_of_demo(tmp_path / "model")
    (folder / "chat_template.jinja").write_text("{# one turn #}\n{% for x in %}")
    with pytest.raises(EnvironmentFault) as caught:
        describe(folder)
    place = f"{folder}/chat_template.jinja: the chat template cannot be parsed (line 2: "
    assert caught.value.message.startswith(place)
    assert "\n" not in str(caught.value) and ".." not in str(caught.value)


@pytest.mark.parametrize("text", ["[]", "\xff"])
def test_a_generation_config_that_is_no_object_is_a_damaged_file(tmp_path: Path, text: str) -> None:
    folder = copy_of_demo(tmp_path / "model")
    (folder / "generation_config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(EnvironmentFault) as caught:
        describe(folder)
    assert caught.value.message.startswith(f"{folder}/generation_config.json cannot be used: ")
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_a_configuration_with_more_layers_than_tensors_fails(tmp_path: Path) -> None:
    """Describing a thousand layers takes minutes and gigabytes."""
    many = {"num_hidden_layers": 1000, "layer_types": None}
    folder = with_json(tmp_path / "model", "config.json", lambda c: c["text_config"].update(many))
    with pytest.raises(UsageError) as caught:
        describe(folder)
    named = f"{folder}/config.json cannot be used: num_hidden_layers is 1000, and no checkpoint of"
    assert caught.value.message.startswith(named)
