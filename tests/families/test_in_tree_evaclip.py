"""EVA-CLIP computed by code of our own makes the vectors of the original code: from hub files and
from the original ones, whole, in halves, streamed, and in few bits; and its folders as people have
them: settings that lie, no processor, pickles."""

import json
import math
import os
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.nn.functional import cosine_similarity

from artifacts.errors import UsageError
from artifacts.schema import Part
from stages.models import describe, load_half
from stages.models.halves.boundary import absent_paths
from stages.models.halves.features import image_vectors, logits, text_vectors
from stages.models.halves.model_class import config_and_class, skeleton_of
from stages.models.in_tree.registry import NATIVES, ORIGINALS, native_of
from stages.models.loading import ModelJob
from stages.models.precision.quantize import count, quantizable
from stages.models.processors.loading import load_processor
from stages.models.streaming.load import run_calls, streamed_layers
from tests.support import evaclip
from tests.support.builders.plan_cases import make_folder as make_headers
from tests.support.builders.plan_cases import plan_case
from tests.support.evaclip import (
    LAYOUTS,
    VOCABULARY,
    converted,
    drawn_ids,
    drawn_pixels,
    make_folder,
    original,
    published,
    write,
)
from tests.support.families import change_config

ROOT = Path(__file__).resolve().parents[2]
SHARED = Path(os.environ.get("PENSTOCK_TEST_NATIVES", ROOT.parent / "shared" / "natives"))
NEAR = 1e-5
"""Most that a vector may be off; its numbers are of the size of 1."""


@cache
def held(name: str, keep: Part) -> Any:
    return load_half(published(name), keep, dtype=torch.float32)


def largest(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).abs().max())


@pytest.mark.slow
@pytest.mark.parametrize("name", LAYOUTS)
def test_the_whole_makes_the_vectors_of_the_original_formulas(name: str) -> None:
    layout, weights, whole = LAYOUTS[name], original(LAYOUTS[name]), held(name, "whole")
    pixels, ids = drawn_pixels(layout), drawn_ids()
    image = evaclip.image_vectors(weights, layout, pixels)
    text = evaclip.text_vectors(weights, ids)
    with torch.inference_mode():
        made = whole(input_ids=ids, pixel_values=pixels)
    assert largest(image_vectors(whole, {"pixel_values": pixels}), image) < NEAR
    assert largest(text_vectors(whole, {"input_ids": ids}), text) < NEAR
    directions = [torch.nn.functional.normalize(each) for each in (image, text)]
    scale = 100 if layout.case else weights["logit_scale"].exp()  # the hub's files have none
    expected = directions[0] @ directions[1].T * scale
    assert largest(made.logits_per_image, expected) < NEAR


@pytest.mark.slow
@pytest.mark.parametrize("name", LAYOUTS)
def test_halves_make_the_bytes_of_the_whole(name: str) -> None:
    whole, vision, text = (held(name, keep) for keep in ("whole", "vision", "language"))
    pictures, texts = {"pixel_values": drawn_pixels(LAYOUTS[name])}, {"input_ids": drawn_ids()}
    vectors = image_vectors(vision, pictures)
    assert torch.equal(vectors, image_vectors(whole, pictures))
    assert torch.equal(text_vectors(text, texts), text_vectors(whole, texts))
    with torch.inference_mode():
        expected = whole(**pictures, **texts).logits_per_image
    assert torch.equal(logits(text, texts, vectors), expected)
    # Where files hold the scale of the logits, it is a weight of the model itself, and in both.
    both = 0 if LAYOUTS[name].case else 1
    assert vision.num_parameters() + text.num_parameters() == whole.num_parameters() + both


@pytest.mark.parametrize(
    "name",
    [name if name == "E-plus" else pytest.param(name, marks=pytest.mark.slow) for name in LAYOUTS],
)
def test_a_vision_half_whose_layers_come_from_the_files_makes_the_same(name: str) -> None:
    job = ModelJob(model=str(published(name)), dtype="float32", offload=True)
    half = job.load_reloadable("vision").model
    assert streamed_layers(half) is not None
    pictures = {"pixel_values": drawn_pixels(LAYOUTS[name])}
    (streamed,) = run_calls(half, [lambda: image_vectors(half, pictures)])
    assert torch.equal(streamed, image_vectors(held(name, "vision"), pictures))


@pytest.mark.skipif(
    not (SHARED / "ref_eva.pt").exists(), reason="what the original code made is not here"
)
def test_the_vectors_are_those_that_the_original_code_made() -> None:
    """tests/rooms/stages/convert/test_convert.py makes the same folder of the original file."""
    case = torch.load(SHARED / "ref_eva.pt", weights_only=True)["8b"]
    vision, text = (
        load_half(SHARED / "eva-8b", half, dtype=torch.float32) for half in ("vision", "language")
    )
    vectors = image_vectors(vision, {"pixel_values": case["px"]})
    assert largest(vectors, case["image"]) < NEAR
    assert largest(text_vectors(text, {"input_ids": case["ids"]}), case["text"]) < NEAR
    made = logits(text, {"input_ids": case["ids"]}, vectors)
    assert largest(made.T, case["logits"]) < NEAR


@pytest.mark.parametrize(
    ("case", "parameters", "linear"),
    [
        ("eva-clip-8b", 8_220_748_544, 32 * 6 + 1),
        ("eva-clip-8b-448", 8_223_894_272, 32 * 6 + 1),
        ("eva-clip-18b", 18_325_482_240, 48 * 6 + 1),
    ],
)
def test_full_size_has_the_published_parameters_and_layers_that_nf4_takes(
    case: str, parameters: int, linear: int, tmp_path: Path
) -> None:
    folder = make_headers(plan_case(case), tmp_path / case)
    skeleton = skeleton_of(*config_and_class(folder, trusted=False))
    assert skeleton.num_parameters() == parameters
    assert len(quantizable(skeleton, "vision")) == linear
    assert absent_paths(skeleton, "vision") == ["text_model", "text_projection"]


def test_names_of_18b_make_the_published_index() -> None:
    """BAAI/EVA-CLIP-18B's pytorch_model.bin.index.json has 97,121 bytes in 1,058 lines."""
    case = plan_case("eva-clip-18b")
    file = "pytorch_model-00001-of-00008.bin"
    index = {
        "metadata": {"total_size": 4 * case.parameters},
        "weight_map": {name: file for name in sorted(case.tensors)},
    }
    text = json.dumps(index, indent=2, sort_keys=True) + "\n"
    assert (len(text), text.count("\n")) == (97_121, 1_058)


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_scale_is_that_of_the_files_or_else_of_training(name: str) -> None:
    whole, config = held(name, "whole"), json.loads((published(name) / "config.json").read_text())
    assert config.get("logit_scale_init_value") in (None, pytest.approx(2.6592, abs=1e-3))
    expected = 1.5 if name == "E-plus" else math.log(100)
    assert whole.logit_scale.item() == pytest.approx(expected, abs=1e-6)
    half: Any = load_half(published(name), "language", dtype=torch.float16)
    assert half.logit_scale.exp().item() == pytest.approx(math.exp(expected), rel=1e-3)


@pytest.mark.parametrize(("precision", "nearest"), [("int8", 0.99), ("nf4", 0.9)])
def test_a_vision_half_in_few_bits_makes_like_vectors_and_takes_less(
    precision: str, nearest: float
) -> None:
    plain = held("8B", "vision")
    half = ModelJob(model=str(published()), dtype="float32", precision=precision).load("vision")
    assert count(half)[precision] == 3 * 6 + 1
    pictures = {"pixel_values": drawn_pixels(LAYOUTS["8B"], 32)}
    few, many = image_vectors(half, pictures), image_vectors(plain, pictures)
    # All vectors of a model lie in one direction; what is left without it tells pictures apart.
    alike = cosine_similarity(few - few.mean(0), many - many.mean(0))
    taken = [sum(w.nbytes for w in model.parameters()) for model in (half, plain)]
    assert alike.min() > nearest
    assert taken[0] < taken[1] * (0.4 if precision == "int8" else 0.3)


def test_it_is_not_taken_for_the_clip_that_its_config_says_it_is() -> None:
    folder = published()
    assert json.loads((folder / "config.json").read_text())["model_type"] == "clip"
    profile = describe(folder, trust_remote_code=True)  # of code that raises SystemExit
    assert (profile.class_name, profile.route) == ("EvaCLIPModel", "dual")
    assert not profile.batch_costs_unknown
    halves = [held("8B", half).num_parameters() for half in ("vision", "language")]
    assert [part.parameters for part in profile.parts.values()] == halves


def test_a_saved_model_is_loaded_again(tmp_path: Path) -> None:
    whole = held("E-plus", "whole")
    whole.save_pretrained(tmp_path)
    assert native_of(tmp_path) is NATIVES["EvaCLIPModel"]
    names = load_file(tmp_path / "model.safetensors").keys()
    assert names == load_file(published("E-plus") / "model.safetensors").keys()
    pictures = {"pixel_values": drawn_pixels(LAYOUTS["E-plus"])}
    again = image_vectors(load_half(tmp_path, "vision"), pictures)
    assert torch.equal(again, image_vectors(whole, pictures))


def vectors_of(folder: Path, name: str) -> torch.Tensor:
    half = load_half(folder, "vision", dtype=torch.float32)
    return image_vectors(half, {"pixel_values": drawn_pixels(LAYOUTS[name])})


def test_flags_that_config_json_states_otherwise_are_read_off_the_names(tmp_path: Path) -> None:
    for name in ("8B", "E-plus"):
        folder = make_folder(tmp_path / name, LAYOUTS[name])
        stated = json.loads((folder / "config.json").read_text())["vision_config"]
        flags = ("q_bias", "k_bias", "v_bias", "use_rms_norm")
        change_config(folder, vision_config=stated | dict.fromkeys(flags, name == "E-plus"))
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
    values = json.loads((folder / "preprocessor_config.json").read_text())
    (folder / "preprocessor_config.json").write_text(
        json.dumps({**values, "do_center_crop": False})
    )
    assert load_processor(folder).image_processor.do_center_crop is False


def test_without_a_tokenizer_pictures_go_in_and_texts_fail(tmp_path: Path) -> None:
    processor = load_processor(make_folder(tmp_path / "model", words=False))
    assert processor.image_processor.crop_size["height"] == 28
    with pytest.raises(UsageError, match="holds no tokenizer") as caught:
        processor(text=["a cat"], return_tensors="pt")
    assert "vocab.json and merges.txt" in caught.value.hint


@pytest.mark.slow
@pytest.mark.parametrize("trusted", [False, True])
def test_pickles_are_told_to_be_converted(trusted: bool, tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "model")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(UsageError, match="only as pickles") as caught:
        describe(folder, trust_remote_code=trusted)
    assert f"penstock convert {folder} DST" in caught.value.hint
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("file", ["EVA_CLIP_8B.pt", "pytorch_model.bin", "model.safetensors"])
def test_a_file_is_no_model_and_is_told_so(file: str, tmp_path: Path) -> None:
    (tmp_path / file).write_bytes(b"weights")
    with pytest.raises(UsageError, match="is a file, but a model is a folder") as caught:
        describe(tmp_path / file)
    message = f"Run: penstock convert {tmp_path / file} DST" in caught.value.hint
    assert message == (not file.endswith("safetensors"))


def test_other_original_files_are_not_recognised() -> None:
    (layout,) = map(import_module, ORIGINALS.values())
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
    (layout,) = map(import_module, ORIGINALS.values())
    shapes = {name: tuple(tensor.shape) for name, tensor in original(LAYOUTS["8B"]).items()}
    config: Any = layout.config({**shapes, "visual.cls_token": (1, 1, width)})
    vision = config["vision_config"]
    assert (vision["num_attention_heads"], vision["post_layernorm"]) == (heads, behind)
    assert not caplog.records
    layout.config(shapes)
    assert "of width 128 is known" in caplog.text
