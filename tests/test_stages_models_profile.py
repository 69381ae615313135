"""What is known of a model before its weights are read is true, and what cannot be used is
refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open

from artifacts.errors import EnvironmentFault, UsageError
from artifacts.keys import ContentDigests
from artifacts.schema import FrameFit
from artifacts.store import open_store
from flows.job.config import CaptionConfig
from flows.job.describing import own_code
from flows.job.launch import DirectLauncher
from flows.job.models import open_model
from stages.models import ModelProfile, describe
from stages.models.hub.checkpoint import Checkpoint
from stages.models.hub.headers import read_headers
from stages.models.processors.fit import probe
from stages.models.processors.prepare import Clip, load_processor, prepare
from stages.models.profile import SamplingProfile
from stages.models.run import run
from tests.support.clips import half_model
from tests.support.families import BUILDERS, checkpoint
from tests.support.hostile import copy_of_demo
from tests.support.waves import events

DEMO = Path(__file__).parent.parent / "penstock_demo" / "checkpoint"


@pytest.fixture(scope="module")
def demo() -> ModelProfile:
    return describe(DEMO)


def test_the_demo_is_described(demo: ModelProfile) -> None:
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


def test_the_halves_of_the_demo_are_its_whole_checkpoint(demo: ModelProfile) -> None:
    with safe_open(DEMO / "model.safetensors", "pt") as file:
        names = set(file.keys())
    vision, language = set(demo.vision.tensors), set(demo.language.tensors)
    assert vision | language == names
    assert not vision & language
    stored = demo.vision.stored_bytes + demo.language.stored_bytes
    assert 0 < (DEMO / "model.safetensors").stat().st_size - stored < 1 << 16


def test_a_profile_survives_json(demo: ModelProfile) -> None:
    assert ModelProfile.from_json(json.loads(json.dumps(demo.to_json()))) == demo


def test_the_stage_tells_the_profile(demo: ModelProfile) -> None:
    with events() as (report, told):
        run({"model": str(DEMO), "revision": None, "trust_remote_code": False}, report)
    assert ModelProfile.from_json(told[0]["profile"]) == demo


@pytest.mark.parametrize("family", BUILDERS)
def test_a_profile_counts_what_each_half_loads(family: str) -> None:
    folder = checkpoint(family)
    profile = describe(folder)
    for keep, half in (("vision", profile.vision), ("language", profile.language)):
        which: Any = keep
        loaded = sum(weight.numel() for weight in half_model(folder, which).parameters())
        assert half.parameters == loaded
        assert half.stored_bytes == 4 * loaded
    assert profile.modalities == (("image",) if family == "llava" else ("image", "video"))


def test_shards_are_told_apart(tmp_path: Path) -> None:
    import transformers

    loader: Any = transformers.LlavaForConditionalGeneration
    model = loader.from_pretrained(checkpoint("llava"))
    model.save_pretrained(tmp_path, max_shard_size="40KB")
    load_processor(checkpoint("llava")).save_pretrained(tmp_path)
    profile = describe(tmp_path)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())["weight_map"]
    for half in (profile.vision, profile.language):
        assert set(half.shards) == {index[name] for name in half.tensors}
        assert len(half.shards) < len(set(index.values()))


def test_sampling_is_what_the_processor_states() -> None:
    assert describe(checkpoint("smolvlm")).sampling == SamplingProfile(fps=1.0, frames=16)
    found = describe(checkpoint("qwen3_vl")).sampling
    assert (found.fps, found.min_frames, found.max_frames) == (2.0, 2, 16)
    assert describe(checkpoint("llava")).sampling == SamplingProfile()


@pytest.mark.parametrize("shape", [(720, 1280), (1280, 720), (960, 960), (600, 1200)])
@pytest.mark.parametrize("family", BUILDERS)
def test_a_fitted_frame_is_seen_at_the_size_of_the_whole(
    family: str, shape: tuple[int, int]
) -> None:
    processor = load_processor(checkpoint(family))
    fit = probe(processor, "image").fit
    height, width = fit.size(*shape)
    assert max(height, width) < max(shape) / 4
    whole, fitted = (prepare(processor, picture(*size)).inputs for size in (shape, (height, width)))
    pixels = "pixel_values"
    assert whole[pixels].shape == fitted[pixels].shape


def picture(height: int, width: int) -> Clip:
    frames = np.zeros((1, height, width, 3), np.uint8)
    return Clip(frames=frames, times=(0.0,), seconds=0.0, kind="image")


def test_a_processor_that_keeps_large_frames_gives_no_fit() -> None:
    processor = load_processor(checkpoint("qwen2_5_vl"))
    processor.image_processor.size = {"shortest_edge": 256, "longest_edge": 1 << 30}
    assert probe(processor, "image").fit == FrameFit()


def test_a_processor_that_does_not_resize_gives_no_fit() -> None:
    processor = load_processor(checkpoint("llava"))
    processor.image_processor.do_resize = False
    assert probe(processor, "image").fit == FrameFit()


def test_a_processor_that_refuses_probes_gives_no_fit() -> None:
    processor = load_processor(checkpoint("llava"))

    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("not today")

    processor.image_processor.resize = refuse
    assert probe(processor, "image").fit == FrameFit()


def test_a_checkpoint_of_the_text_part_alone_fails(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "model"
    shutil.copytree(checkpoint("llava"), folder)
    weights = load_file(folder / "model.safetensors")
    text = {n: t for n, t in weights.items() if "language_model" in n and torch.is_tensor(t)}
    save_file(text, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UsageError, match="no weights of a vision half"):
        describe(folder)


def test_a_model_without_weights_fails(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(checkpoint("llava"), folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(UsageError, match="holds no weights"):
        describe(folder)


def test_a_configuration_that_is_no_json_fails(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UsageError, match=r"config\.json"):
        describe(tmp_path)


@pytest.mark.parametrize("name", ["model.safetensors", "extra.bin"])
def test_a_weight_file_that_is_a_link_to_nowhere_is_named(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(checkpoint("llava"), folder)
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(tmp_path / "gone")
    config = CaptionConfig(sources=("none",), model=str(folder))
    with pytest.raises(EnvironmentFault, match=f"{name} of model .* cannot be read"):
        open_model(
            config,
            store=open_store(str(tmp_path / "store")),
            digests=ContentDigests(tmp_path / "digests.jsonl"),
            launcher=DirectLauncher(lambda *_: None),
            device="cpu",
        )


def test_code_of_a_checkpoints_own_is_keyed_where_it_is_trusted(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(checkpoint("llava"), folder)
    assert own_code(folder, trusted=True) == []
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "other/place--code.Model"}
    (folder / "config.json").write_text(json.dumps(config))
    assert own_code(folder, trusted=True) != own_code(folder, trusted=False) == []


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


@pytest.mark.parametrize("how", DAMAGE)
def test_weights_that_are_not_all_there_fail(how: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(checkpoint("llava"), folder)
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


@pytest.mark.parametrize("template", ["{{ nothing.at.all }}", "{{ 1 + 'one' }}"])
def test_a_chat_template_that_cannot_be_rendered_fails(template: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(checkpoint("qwen2_5_vl"), folder)
    processor = load_processor(folder)
    processor.chat_template = processor.tokenizer.chat_template = template
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


@pytest.mark.parametrize("text", ["[]", "null", '{"a":', "\xff"])
def test_a_generation_config_that_is_no_object_is_a_damaged_file(tmp_path: Path, text: str) -> None:
    folder = copy_of_demo(tmp_path / "model")
    (folder / "generation_config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(EnvironmentFault) as caught:
        describe(folder)
    assert caught.value.message.startswith(f"{folder}/generation_config.json cannot be used: ")
    assert "\n" not in str(caught.value)
