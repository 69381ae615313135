"""Features cut by rows and joined again, in any batch, are what one batch would have given; in a
file of their own they keep all that decoding needs of them."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers.modeling_outputs import BaseModelOutputWithPooling

from artifacts.errors import UsageError
from artifacts.tensors import make_record, pack_tree, unpack_tree
from stages.models import encode, generate, load_features, load_half, save_features
from stages.models.encoding.batch import encode_batches
from stages.models.feature_files import write_tree
from stages.models.halves.records import (
    CannotSplit,
    FeatureRecord,
    RowCount,
    merge,
    merge_rows,
    split,
)
from stages.models.processors.prepare import load_processor, prepare
from tests.support.clips import PROMPTS, clips, half_model, joint_inputs
from tests.support.families import BUILDERS, checkpoint
from tests.support.tiny_families import FAMILIES
from tests.support.tiny_families.verdict import GREEDY
from tests.support.trees import assert_equal

ROWS = [RowCount(tokens=4, media=1), RowCount(tokens=10, media=2), RowCount(tokens=2, media=1)]


def record(**fields: Any) -> Any:
    class Wide(dict[str, Any]):
        """Takes any field, as the records of all families together do."""

        def __init__(self, **given: Any) -> None:
            super().__init__(given)

    return Wide(**fields)


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
    values: dict[str, Any] = {
        "features": {"image": part},
        "rules": {"image": rule},
        "needs": (),
        "channel": "images",
        "side": {"image_grid_thw": torch.tensor([[1, 4, 4]])},
        "replacements": ("<image>",),
        "count": count,
    }
    return FeatureRecord(**{**values, **changes})


def test_rows_of_unlike_structure_are_kept_apart() -> None:
    plain = feature_record([torch.randn(4, 3)])
    assert plain.joins_with() == feature_record([torch.randn(4, 3)]).joins_with()
    unlike = [
        feature_record(torch.randn(1, 4, 3)),
        feature_record([torch.randn(4, 3)], channel="videos"),
        feature_record([torch.randn(4, 3)], side={}),
        feature_record([torch.randn(4, 3)], side={"image_grid_thw": torch.ones(1, 5)}),
        feature_record(torch.randn(7, 3)),
        feature_record(torch.randn(7, 3)),
    ]
    keys = [plain.joins_with(), *(row.joins_with() for row in unlike)]
    assert len(set(keys)) == len(keys)
    shorter = feature_record(torch.randn(1, 4, 3)), feature_record(torch.randn(2, 2, 3))
    assert shorter[0].joins_with() != shorter[1].joins_with()


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
    assert {row.joins_with() for row in loaded} == {alone.joins_with()}
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


@pytest.mark.parametrize("family", ["llava", "qwen3_vl", "janus", "perception_lm:video"])
def test_features_come_back_with_all_that_decoding_needs(family: str, tmp_path: Path) -> None:
    model, inputs = FAMILIES[family]()
    model.save_pretrained(tmp_path)
    features = encode(load_half(tmp_path, "vision"), inputs)
    save_features(tmp_path / "features", features)
    found = load_features(tmp_path / "features")
    assert found.needs == features.needs and "input_ids" in found.needs
    assert {n: tuple(s) for n, s in found.blank.items()} == features.blank != {}
    assert_equal(dict(found), dict(features))


def test_a_language_half_that_asks_for_no_features_is_refused_with_some(tmp_path: Path) -> None:
    model, inputs = FAMILIES["janus"]()
    model.save_pretrained(tmp_path)
    features = encode(load_half(tmp_path, "vision"), inputs)
    with pytest.raises(UsageError, match="did not request its image features"):
        generate(load_half(tmp_path, "language"), inputs, dict(features), **GREEDY)


def test_a_plain_dict_of_features_is_not_saved(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is not a result of encode"):
        save_features(tmp_path / "features", {"image": 0})  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("tree", [0, ["features"], {"features": {}}, {"features": 1, "needs": 2}])
def test_a_file_of_something_else_is_not_taken_for_features(tree: Any, tmp_path: Path) -> None:
    write_tree(tmp_path / "tree", tree)
    with pytest.raises(UsageError, match="does not hold features"):
        load_features(tmp_path / "tree")
