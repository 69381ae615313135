"""Each half alone reads only its own weights, and both together say what the whole model says, also
with features that were cut by rows, joined again in any batch, or kept in a file."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils import logging

from artifacts.errors import EnvironmentFault, UsageError
from artifacts.records.tensors import make_record, pack_tree, unpack_tree
from stages.models import NeedsWeights, describe, encode, generate, load_half
from stages.models.encoding.batch import encode_batches
from stages.models.halves.boundary import HALVES
from stages.models.halves.records import (
    OUTLINE,
    CannotSplit,
    FeatureRecord,
    RowCount,
    merge,
    merge_rows,
    split,
)
from stages.models.processors.loading import load_processor
from stages.models.processors.prepare import prepare
from stages.models.protocols import module_of
from tests.support.clips import (
    PROMPTS,
    clips,
    half_model,
    joint_inputs,
    joint_model,
    without_pixels,
)
from tests.support.families import BUILDERS, change_weights, checkpoint, copy_of
from tests.support.tiny_families import FAMILIES
from tests.support.trees import assert_equal

CONNECTOR = "multi_modal_projector"
GREEDY: dict[str, Any] = {"do_sample": False, "max_new_tokens": 8, "eos_token_id": None}


@pytest.fixture
def heard(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """What transformers logs, which it keeps from reaching the root logger otherwise."""
    logging.enable_propagation()
    yield caplog
    logging.disable_propagation()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["image", "video"])
@pytest.mark.parametrize("family", BUILDERS)
def test_halves_say_what_the_whole_model_says(family: str, kind: str) -> None:
    folder = checkpoint(family)
    inputs = joint_inputs(load_processor(folder), clips(kind, 4), PROMPTS)
    joint = joint_model(folder).generate(**inputs, **GREEDY)

    features = encode(half_model(folder, "vision"), inputs)
    language = half_model(folder, "language")
    staged = generate(language, without_pixels(inputs), features, **GREEDY)
    assert torch.equal(staged, joint)
    again = generate(language, without_pixels(inputs), features, **GREEDY)
    assert torch.equal(again, joint), "the first call must not have changed the features"


@pytest.mark.parametrize("family", BUILDERS)
def test_what_is_seen_decides_what_is_said(family: str) -> None:
    """Guards the tests above: a model that ignores its pictures would pass them."""
    folder = checkpoint(family)
    inputs = joint_inputs(load_processor(folder), clips("image", 4), ["Describe."] * 4)
    text = joint_model(folder).generate(**inputs, **GREEDY)[:, -8:]
    assert len({tuple(row.tolist()) for row in text}) == 4


@pytest.mark.parametrize("family", BUILDERS)
def test_the_halves_share_no_parameter_and_miss_none(family: str) -> None:
    folder = checkpoint(family)
    vision, language = (half_model(folder, half) for half in HALVES)
    joint = joint_model(folder)
    assert vision.num_parameters() + language.num_parameters() == joint.num_parameters()
    shared = dict(vision.named_parameters()).keys() & dict(language.named_parameters()).keys()
    assert not shared


def test_using_the_absent_half_names_the_piece() -> None:
    folder = checkpoint("llava_onevision")
    vision, language = (half_model(folder, half) for half in HALVES)
    with pytest.raises(NeedsWeights, match=r"model\.language_model"):
        vision.model.language_model(torch.zeros(1, 1))
    with pytest.raises(NeedsWeights, match=r"embed_tokens\.weight"):
        vision.get_input_embeddings().weight.sum()
    with pytest.raises(NeedsWeights, match=r"model\.image_newline"):
        torch.cat([torch.zeros(32), language.model.image_newline])
    with pytest.raises(NeedsWeights, match="image_newline") as refused:
        _ = language.model.image_newline[None]
    assert 'extra_modules=["model.image_newline"]' in refused.value.hint
    assert vision.model.language_model.config.hidden_size == 32


def test_decoding_without_an_input_that_encoding_had_fails() -> None:
    folder = checkpoint("qwen3_vl")
    inputs = joint_inputs(load_processor(folder), clips("video", 1), PROMPTS[:1])
    features = encode(half_model(folder, "vision"), inputs)
    language = half_model(folder, "language")
    assert {"video_grid_thw", "mm_token_type_ids"} <= features.needs
    for name in ("video_grid_thw", "mm_token_type_ids"):
        lacking = {n: v for n, v in without_pixels(inputs).items() if n != name}
        with pytest.raises(UsageError, match=name):
            generate(language, lacking, features, **GREEDY)


def test_features_that_do_not_match_the_placeholders_fail() -> None:
    folder = checkpoint("qwen2_5_vl")
    processor = load_processor(folder)
    small = joint_inputs(processor, clips("image", 1, height=16, width=16), PROMPTS[:1])
    large = joint_inputs(processor, clips("image", 1), PROMPTS[:1])
    cases: dict[int, Any] = {4: encode(half_model(folder, "vision"), small), 0: {}}
    for held, features in cases.items():
        with pytest.raises(UsageError, match=rf"12 placeholders.* features for {held}"):
            generate(half_model(folder, "language"), without_pixels(large), features, **GREEDY)


def test_encoding_without_pixels_fails() -> None:
    with pytest.raises(UsageError, match=r"no pixels .* It takes pixel_values, as its processor"):
        encode(half_model(checkpoint("llava"), "vision"), {"input_ids": torch.zeros(1, 1)})


def test_a_checkpoint_that_lacks_a_tensor_fails(tmp_path: Path) -> None:
    folder = copy_of("llava", tmp_path / "model")
    change_weights(folder, lambda weights: weights.pop(next(n for n in weights if CONNECTOR in n)))
    with pytest.raises(EnvironmentFault, match="lacks 1 tensor of the vision half"):
        load_half(folder, "vision")
    parameters = load_half(folder, "language").parameters()
    assert sum(parameter.numel() for parameter in parameters)


def test_a_tensor_of_another_shape_fails(tmp_path: Path) -> None:
    folder = copy_of("llava", tmp_path / "model")
    change_weights(
        folder,
        lambda old: {n: t[1:].clone() if "position_embedding" in n else t for n, t in old.items()},
    )
    with pytest.raises(EnvironmentFault, match=r"do not have the shapes that its config\.json"):
        load_half(folder, "vision")


@pytest.mark.parametrize("half", HALVES)
def test_a_checkpoint_that_does_not_say_its_dtype_has_that_of_its_weights(
    half: Any, tmp_path: Path
) -> None:
    folder = copy_of("llava", tmp_path / "model")
    text = (folder / "config.json").read_text()
    (folder / "config.json").write_text(text.replace('"dtype"', '"unread"'))
    change_weights(folder, lambda weights: {n: t.half() for n, t in weights.items()})
    assert load_half(folder, half).dtype == torch.float16


def test_weights_that_are_cut_short_fail(tmp_path: Path) -> None:
    folder = copy_of("llava", tmp_path / "model")
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(EnvironmentFault, match=r"is not a whole safetensors file") as caught:
        load_half(folder, "vision")
    assert "\n" not in str(caught.value) and "git lfs pull" in caught.value.hint


def test_pickled_weights_fail(tmp_path: Path) -> None:
    folder = copy_of("llava", tmp_path / "model")
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(UsageError, match="pickles"):
        load_half(folder, "vision")
    parameters = load_half(folder, "vision", trust_remote_code=True).parameters()
    assert sum(parameter.numel() for parameter in parameters)


@pytest.mark.parametrize(
    "text_config", ["x", {"hidden_size": "many"}, {"hidden_size": 32, "num_attention_heads": 5}]
)
def test_a_configuration_of_wrong_values_fails(text_config: Any, tmp_path: Path) -> None:
    config = {"model_type": "llava", "text_config": text_config}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UsageError, match=r"config\.json cannot be used") as caught:
        load_half(tmp_path, "vision")
    assert "\n" not in str(caught.value)


def test_a_model_without_a_vision_half_fails(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(UsageError, match="no vision half"):
        load_half(tmp_path, "vision")


MODULE_NAMES = {
    "qwen2_5_vl": {"model.": "model.language_model.", "visual.": "model.visual."},
    "llava": {
        "language_model.model.": "model.language_model.",
        "language_model.lm_head.": "lm_head.",
        "vision_tower.": "model.vision_tower.",
        "multi_modal_projector.": "model.multi_modal_projector.",
    },
}
"""Checkpoints are saved under the names that the hub has always had; some are named like the
modules."""


@pytest.mark.slow
@pytest.mark.parametrize("family", MODULE_NAMES)
def test_checkpoints_named_like_the_modules_are_cut_too(
    family: str, tmp_path: Path, heard: pytest.LogCaptureFixture
) -> None:
    def renamed_as(name: str) -> str:
        old = next((start for start in MODULE_NAMES[family] if name.startswith(start)), "")
        return MODULE_NAMES[family].get(old, "") + name.removeprefix(old)

    folder = copy_of(family, tmp_path / "model")
    change_weights(folder, lambda weights: {renamed_as(n): t for n, t in weights.items()})
    profile = describe(folder)
    for half in HALVES:
        usual = half_model(checkpoint(family), half)
        renamed = load_half(folder, half)
        counted = profile.vision if half == "vision" else profile.language
        assert set(counted.tensors) == set(module_of(renamed).state_dict())
        states = (module_of(model).state_dict().values() for model in (renamed, usual))
        pairs = zip(*states, strict=True)
        assert all(torch.equal(left, right) for left, right in pairs)
    assert not heard.records


ROWS = [RowCount(tokens=4, media=1), RowCount(tokens=10, media=2), RowCount(tokens=2, media=1)]


class FieldRecord(dict[str, Any]):
    """Takes any field, as the records of all families together do."""


def record(**fields: Any) -> Any:
    return FieldRecord(**fields)


LAYOUTS: dict[str, tuple[Any, Any]] = {
    "tokens": (torch.randn(16, 3), [(4, 3), (10, 3), (2, 3)]),
    "units of two tokens": (torch.randn(8, 2, 3), [(2, 2, 3), (5, 2, 3), (1, 2, 3)]),
    "one number a picture": (torch.randn(4), [(1,), (2,), (1,)]),
    "one vector a picture": (torch.randn(4, 7), [(1, 7), (2, 7), (1, 7)]),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_tensors_are_cut_where_rows_end(layout: str) -> None:
    tensor, shapes = LAYOUTS[layout]
    parts, rule = split(record(pooler_output=tensor), ROWS)
    assert [tuple(part["pooler_output"].shape) for part in parts] == shapes
    assert_equal(merge(parts, rule)["pooler_output"], tensor)


@pytest.mark.parametrize("kind", [list, tuple])
def test_sequences_of_pictures_are_cut_by_pictures(kind: Any) -> None:
    pictures = kind(torch.randn(size, 3) for size in (4, 7, 3, 2))
    parts, rule = split(record(pooler_output=pictures), ROWS)
    assert [len(part["pooler_output"]) for part in parts] == [1, 2, 1]
    assert_equal(merge(parts, rule)["pooler_output"], pictures)


def test_sequences_of_layers_are_cut_inside() -> None:
    layers = [torch.randn(16, 3) for _ in range(2)]
    nested = [(4, [torch.randn(n, 3) for n in (4, 7, 3, 2)]), (8, [torch.randn(16, 3)])]
    whole = record(pooler_output=layers[0], deepstack_features=layers, by_picture=nested, none=None)
    parts, rule = split(whole, ROWS)
    assert [part["deepstack_features"][1].shape[0] for part in parts] == [4, 10, 2]
    assert [len(part["by_picture"][0][1]) for part in parts] == [1, 2, 1]
    assert json.loads(json.dumps(rule)) == rule
    assert_equal(merge(parts, rule), whole)


def test_one_layer_of_one_picture_is_not_taken_for_a_picture() -> None:
    one = [RowCount(tokens=4, media=1)]
    first, second = (torch.randn(4, 3) for _ in range(2))
    (left,), rule = split(record(pooler_output=[first], deepstack_features=[first]), one)
    (right,), other = split(record(pooler_output=[second], deepstack_features=[second]), one)
    assert rule == other
    joined = merge([left, right], rule)
    assert_equal(joined["pooler_output"], [first, second])
    assert_equal(joined["deepstack_features"], [torch.cat([first, second])])


def test_what_fits_no_row_fails_in_a_batch_and_stays_whole_alone() -> None:
    odd = record(pooler_output=torch.randn(5, 3))
    with pytest.raises(CannotSplit):
        split(odd, ROWS)
    (part,), rule = split(odd, ROWS[:1])
    assert_equal(merge([part], rule), odd)
    with pytest.raises(CannotSplit):
        merge([part, part], rule)


def feature_record(pooled: Any, **changes: Any) -> FeatureRecord:
    count = RowCount(tokens=4, media=1)
    output = make_record(BaseModelOutputWithPooling, {"pooler_output": pooled})
    (part,), rule = split(output, [count])
    values: dict[str, Any] = {"features": {"image": part}, "rules": {"image": rule}, "needs": ()}
    values |= {"channel": "images", "side": {"image_grid_thw": torch.tensor([[1, 4, 4]])}}
    return FeatureRecord(**values | {"replacements": ("<image>",), "count": count, **changes})


def test_rows_of_unlike_structure_are_kept_apart() -> None:
    plain = feature_record([torch.randn(4, 3)])
    assert plain.joins_with(0) == feature_record([torch.randn(4, 3)]).joins_with(1)
    unlike = [
        feature_record(torch.randn(1, 4, 3)),
        feature_record([torch.randn(4, 3)], channel="videos"),
        feature_record([torch.randn(4, 3)], side={}),
        feature_record([torch.randn(4, 3)], side={"image_grid_thw": torch.ones(1, 5)}),
        feature_record(torch.randn(7, 3)),
        feature_record(torch.randn(7, 3)),
    ]
    keys = [row.joins_with(number) for number, row in enumerate([plain, *unlike])]
    assert len(set(keys)) == len(keys)
    shorter = feature_record(torch.randn(1, 4, 3)), feature_record(torch.randn(2, 2, 3))
    assert shorter[0].joins_with(0) != shorter[1].joins_with(1)


def test_keys_of_rows_that_join_no_other_outlive_the_rows() -> None:
    def keys_of(**parts: Any) -> list[str]:
        return [feature_record(torch.randn(7, 3), **parts).joins_with(n) for n in range(50)]

    assert len(set(keys_of())) == 50 and keys_of() == keys_of()
    heard = {"heard": feature_record([torch.randn(4, 3)]), "side": {OUTLINE: []}}
    assert len(set(keys_of(**heard))) == 50


@pytest.mark.parametrize("kind", ["image", "video"])
@pytest.mark.parametrize("family", BUILDERS)
def test_rows_joined_from_disk_are_the_batch(family: str, kind: str) -> None:
    folder = checkpoint(family)
    processor = load_processor(folder)
    batch = clips(kind, 3)
    half = half_model(folder, "vision")
    whole = encode(half, joint_inputs(processor, batch, PROMPTS[:3]))

    prepared = [prepare(processor, clip) for clip in batch]
    rows, (alone,) = encode_batches(half, [prepared, prepared[:1]])
    stored = [pack_tree(row.to_tree()) for row in rows]
    loaded = [FeatureRecord.from_tree(unpack_tree(meta, data)) for meta, data in stored]
    assert {row.joins_with(number) for number, row in enumerate(loaded, 1)} == {alone.joins_with(0)}
    assert_equal(merge_rows(loaded), dict(whole))


def test_rows_of_unlike_sizes_are_encoded_in_order() -> None:
    folder = checkpoint("qwen3_vl")
    processor = load_processor(folder)
    batch = [*clips("video", 1), *clips("video", 1, height=80), *clips("image", 1)]
    prepared = [prepare(processor, clip) for clip in batch]
    rows = encode_batches(half_model(folder, "vision"), [prepared])[0]
    counts = [prepare(processor, clip).count for clip in batch]
    assert [row.count for row in rows] == counts
    assert [row.channel for row in rows] == ["videos", "videos", "images"]
    assert len({count.tokens for count in counts}) == 3


def test_a_language_half_that_asks_for_no_features_is_refused_with_some(tmp_path: Path) -> None:
    model, inputs = FAMILIES["janus"]()
    model.save_pretrained(tmp_path)
    features = encode(load_half(tmp_path, "vision"), inputs)
    with pytest.raises(UsageError, match="did not request its image features"):
        generate(load_half(tmp_path, "language"), inputs, dict(features), **GREEDY)
