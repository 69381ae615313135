"""EVA-CLIP's folders as people have them: settings that lie, no processor, pickles, and files of
its original code."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from artifacts.errors import UsageError
from stages.models import describe, load_half
from stages.models.halves.vectors import image_vectors
from stages.models.natives.registry import ORIGINALS
from stages.models.processors.loading import load_processor
from tests.support.evaclip import (
    LAYOUTS,
    VOCABULARY,
    converted,
    drawn_pixels,
    make_folder,
    original,
    published,
    write,
)


def vectors_of(folder: Path, name: str) -> torch.Tensor:
    half = load_half(folder, "vision", dtype=torch.float32)
    return image_vectors(half, {"pixel_values": drawn_pixels(LAYOUTS[name])})


def test_flags_that_config_json_states_otherwise_are_read_off_the_names(tmp_path: Path) -> None:
    for name in ("8B", "E-plus"):
        folder = make_folder(tmp_path / name, LAYOUTS[name])
        config = json.loads((folder / "config.json").read_text())
        for flag in ("q_bias", "k_bias", "v_bias", "use_rms_norm"):
            config["vision_config"][flag] = name == "E-plus"
        (folder / "config.json").write_text(json.dumps(config))
        assert torch.equal(vectors_of(folder, name), vectors_of(published(name), name))


def test_what_projects_a_picture_adds_something_where_the_files_say_so(tmp_path: Path) -> None:
    config, weights = converted(original(LAYOUTS["8B"]))
    more = torch.linspace(-1, 1, len(weights["visual_projection.weight"]))
    write(tmp_path, config, {**weights, "visual_projection.bias": more})
    added = vectors_of(tmp_path, "8B") - vectors_of(published(), "8B")
    assert torch.allclose(added, more.expand_as(added), atol=1e-5)


def test_pictures_and_texts_go_in_as_the_published_page_says() -> None:
    processor = load_processor(published())
    noise = torch.randint(0, 255, (40, 60, 3), dtype=torch.uint8).numpy()
    pixels = processor(images=[noise], return_tensors="pt")["pixel_values"]
    assert pixels.shape == (1, 3, 28, 28) and "rescale" in str(processor.image_processor)
    ids = processor.tokenizer("a cat")["input_ids"]
    assert (ids[0], ids[-1]) == (VOCABULARY - 2, VOCABULARY - 1)


def test_settings_of_pictures_that_a_folder_has_are_taken(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "model")
    load_processor(folder).image_processor.save_pretrained(folder)
    told = json.loads((folder / "preprocessor_config.json").read_text())
    (folder / "preprocessor_config.json").write_text(json.dumps({**told, "do_center_crop": False}))
    assert load_processor(folder).image_processor.do_center_crop is False


def test_without_a_tokenizer_pictures_go_in_and_texts_fail(tmp_path: Path) -> None:
    processor = load_processor(make_folder(tmp_path / "model", words=False))
    assert processor.image_processor.crop_size["height"] == 28
    with pytest.raises(UsageError, match="holds no tokenizer") as caught:
        processor(text=["a cat"], return_tensors="pt")
    assert "vocab.json and merges.txt" in caught.value.hint


def pickled(folder: Path) -> Path:
    make_folder(folder)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    return folder


@pytest.mark.parametrize("trusted", [False, True])
def test_pickles_are_told_to_be_converted(trusted: bool, tmp_path: Path) -> None:
    folder = pickled(tmp_path / "model")
    with pytest.raises(UsageError, match="only as pickles") as caught:
        describe(folder, trust_remote_code=trusted)
    assert f"penstock convert {folder} DST" in caught.value.hint
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("file", ["EVA_CLIP_8B.pt", "pytorch_model.bin", "model.safetensors"])
def test_a_file_is_no_model_and_is_told_so(file: str, tmp_path: Path) -> None:
    (tmp_path / file).write_bytes(b"weights")
    with pytest.raises(UsageError, match="is a file, and a model is a folder") as caught:
        describe(tmp_path / file)
    told = f"Run: penstock convert {tmp_path / file} DST" in caught.value.hint
    assert told == (not file.endswith("safetensors"))


@pytest.mark.parametrize(
    "changes", [{"vision_config": 7}, {"vision_config": {"num_attention_heads": 7}}]
)
def test_a_configuration_without_sense_fails_in_one_line(
    changes: dict[str, Any], tmp_path: Path
) -> None:
    shutil.copytree(published(), tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    with pytest.raises(UsageError, match=r"config\.json") as caught:
        describe(tmp_path / "model")
    assert "\n" not in str(caught.value)


def test_other_original_files_are_not_recognised() -> None:
    (layout,) = ORIGINALS
    names = list(original(LAYOUTS["E-plus"]))
    assert layout.recognises(names) and layout.recognises(original(LAYOUTS["8B"]).keys())
    # The small ones of that code turn positions, and split query, key and value.
    for more in ("visual.rope.freqs_cos", "visual.blocks.0.attn.q_proj.weight", "optimizer"):
        assert not layout.recognises([*names, more])
    assert not layout.recognises([n for n in names if not n.startswith("text.")])
    assert not layout.recognises([])


@pytest.mark.parametrize(
    ("width", "heads", "behind"), [(1792, 16, True), (4096, 32, False), (5120, 40, True)]
)
def test_what_shapes_do_not_say_is_known_of_published_widths(
    width: int, heads: int, behind: bool, caplog: pytest.LogCaptureFixture
) -> None:
    (layout,) = ORIGINALS
    shapes = {name: tuple(tensor.shape) for name, tensor in original(LAYOUTS["8B"]).items()}
    config: Any = layout.config({**shapes, "visual.cls_token": (1, 1, width)})
    vision = config["vision_config"]
    assert (vision["num_attention_heads"], vision["post_layernorm"]) == (heads, behind)
    assert not caplog.records
    layout.config(shapes)
    assert "of width 128 is known" in caplog.text
