"""An encoder's windows of one length are computed with one call of attention, to the bit as one by
one, and its grids are read on the host."""

import ast
import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from artifacts.records.store import open_store
from stages.models.halves import boundary
from stages.models.halves.boundary import StoredWindows, group_windows, has_windows
from stages.models.halves.features import encode
from stages.models.halves.recorded import HostGrid, keep_grids_on_host
from stages.process.checks import Verdicts
from tests.support.tiny_families import FAMILIES
from tests.support.tiny_families.in_slots import cast, greedy
from tests.support.trees import AllEqual, tensors_in

MODELS = Path(transformers.__file__).parent / "models"
LOOP = "lengths = cu_seqlens[1:] - cu_seqlens[:-1]"
"""How the loop over windows begins in transformers' files."""
CLIP = [[8, 48, 64]]
GRIDS = {
    "picture": [[1, 28, 36]],
    "video": [[4, 28, 36]],
    "pictures": [[1, 18, 26], [1, 12, 34], [1, 18, 26]],
    "picture and video": [[2, 18, 26], [1, 12, 34]],
}


@pytest.fixture(autouse=True)
def _no_results(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(boundary, "EQUAL", {})


def tower(layers: int, *, width: int = 64, heads: int = 2, dtype: torch.dtype, full: Any) -> Any:
    """A vision half of Qwen2.5-VL, whose other layers have windows of 64 patches."""
    torch.manual_seed(0)
    config: Any = transformers.Qwen2_5_VLConfig().vision_config
    config.depth, config.hidden_size, config.num_heads = layers, width, heads
    config.intermediate_size = config.out_hidden_size = width
    config.fullatt_block_indexes, config._attn_implementation = list(full), "sdpa"
    module: Any = importlib.import_module("transformers.models.qwen2_5_vl.modeling_qwen2_5_vl")
    return module.Qwen2_5_VisionTransformerPretrainedModel(config).to(dtype).eval()


def features_of(half: Any, grid: Any, dtype: torch.dtype) -> torch.Tensor:
    patches = int(torch.as_tensor(grid).prod(-1).sum())
    pixels = torch.randn(patches, 1176, generator=torch.Generator().manual_seed(1)).to(dtype)
    with torch.inference_mode():
        made: torch.Tensor = half(pixels, grid_thw=torch.as_tensor(grid)).pooler_output
    return made


@pytest.fixture
def attention_calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The shapes of the queries of all calls of SDPA."""
    calls: list[tuple[int, ...]] = []
    real = torch.nn.functional.scaled_dot_product_attention

    def noted(query: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        calls.append(tuple(query.shape))
        return real(query, *args, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", noted)
    return calls


@pytest.mark.slow
@pytest.mark.parametrize("dtype", (torch.float32, torch.float16, torch.bfloat16), ids=str)
@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
def test_one_call_a_length_gives_the_bits_of_one_by_one(
    grid: Any, dtype: torch.dtype, attention_calls: list[tuple[int, ...]]
) -> None:
    half = tower(3, width=160, dtype=dtype, full=[2])  # heads of 80, as published
    expected = features_of(half, grid, dtype)
    one_by_one = len(attention_calls)
    assert group_windows(half) == 3
    compared = features_of(half, grid, dtype)
    assert boundary.EQUAL and all(boundary.EQUAL.values()), boundary.EQUAL
    attention_calls.clear()
    together = features_of(half, grid, dtype)
    assert len(attention_calls) < one_by_one / 3
    for found in (compared, together):
        assert found.dtype == dtype
        assert torch.equal(found.view(torch.uint8), expected.view(torch.uint8))


def test_a_clip_takes_one_call_a_length_and_layer_and_no_read_of_the_card(
    attention_calls: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tensors on the meta device have no numbers: whoever reads one raises."""
    monkeypatch.setattr(boundary, "EQUAL", AllEqual())
    full = (7, 15, 23, 31)
    half = tower(32, dtype=torch.bfloat16, full=full).to("meta")
    group_windows(half)
    keep_grids_on_host(half)
    pixels = torch.empty(8 * 48 * 64, 1176, dtype=torch.bfloat16, device="meta")
    with torch.inference_mode():
        grid = HostGrid(torch.tensor(CLIP), torch.device("meta"))
        made = half(pixels, grid_thw=grid).pooler_output
    assert made.shape == (8 * 48 * 64 // 4, 64)
    frames, squares = (8, 2, 48 * 64, 32), (8 * 48 * 64 // 64, 2, 64, 32)
    assert attention_calls == [frames if layer in full else squares for layer in range(32)]


def test_a_length_with_other_bits_is_computed_one_by_one(
    attention_calls: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    real, grid = boundary._together, [[1, 28, 36]]

    def other_for_32(attend: Any, states: Any, group: Any) -> torch.Tensor:
        made = real(attend, states, group)
        return made + (2**-20 if group.length == 32 else 0)

    half = tower(2, dtype=torch.float32, full=[1])
    expected = features_of(half, grid, torch.float32)
    before = len(attention_calls)
    monkeypatch.setattr(boundary, "_together", other_for_32)
    group_windows(half)
    assert torch.equal(features_of(half, grid, torch.float32), expected)
    attention_calls.clear()
    assert torch.equal(features_of(half, grid, torch.float32), expected)
    assert len(attention_calls) == before
    store = open_store(str(tmp_path / "store"))
    name = "Qwen2_5_VLVisionAttention float32 2 x 32, 7 of 32"
    assert StoredWindows(Verdicts(store, "cpu")).keep(half) == {"together": 1, "one_by_one": [name]}
    boundary.EQUAL.clear()
    StoredWindows(Verdicts(store, "cpu"))
    expected_results = {name: False, name.replace("7 of 32", "12 of 64"): True}
    assert expected_results == boundary.EQUAL
    boundary.EQUAL.clear()
    StoredWindows(Verdicts(store, "cuda:0"))
    assert boundary.EQUAL == {}


def test_other_attention_than_sdpa_stays() -> None:
    half = tower(2, dtype=torch.float32, full=[1])
    half.config._attn_implementation = "eager"
    assert group_windows(half) == 0
    assert half.config._attn_implementation == "eager"


@pytest.mark.slow
def test_all_classes_of_transformers_with_the_loop_are_found() -> None:
    expected, found = set(), set()
    for file in sorted(MODELS.glob("*/modeling_*.py")):
        if LOOP not in (text := file.read_text(encoding="utf-8")):
            continue
        expected |= {
            (file.stem, node.name)
            for node in ast.parse(text).body
            if isinstance(node, ast.ClassDef) and LOOP in ast.unparse(node)
        }
        module = importlib.import_module(f"transformers.models.{file.parent.name}.{file.stem}")
        found |= {
            (file.stem, cls.__name__)
            for cls in vars(module).values()
            if inspect.isclass(cls) and cls.__module__ == module.__name__
            if issubclass(cls, torch.nn.Module) and has_windows(cls)
        }
    assert found == expected and len({file for file, _ in found}) == 33


def _families() -> Iterator[Any]:
    for name in FAMILIES:
        if name in ("qwen2_5_vl:video:b2", "qwen3_vl"):
            yield name
        elif re.match("qwen[2345]|glm|mini|paddle|ernie|exaone|cosmos|video_llama_3|kimi", name):
            yield pytest.param(name, marks=pytest.mark.slow)


@pytest.mark.parametrize("name", list(_families()))
def test_an_encoder_gives_the_same_features_and_reads_nothing_from_the_card(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, inputs = FAMILIES[name]()
    if not any(has_windows(type(module)) for module in model.modules()):
        pytest.skip(f"{name} has no windows")
    model, inputs = greedy(model.to(torch.bfloat16)), cast(inputs, torch.bfloat16)
    expected = tensors_in(encode(model, inputs))
    assert group_windows(model)
    keep_grids_on_host(model)
    for found in (tensors_in(encode(model, inputs)), tensors_in(encode(model, inputs))):
        assert all(type(tensor) is torch.Tensor for tensor in found)
        assert len(found) == len(expected) and all(map(torch.equal, found, expected))
    monkeypatch.setattr(boundary, "EQUAL", AllEqual())
    on_card = tensors_in(encode(model.to("meta"), inputs))  # a read of the meta device raises
    assert [tensor.shape for tensor in on_card] == [tensor.shape for tensor in expected]


def test_a_grid_acts_as_a_tensor_of_the_device_and_computes_on_the_host() -> None:
    card = torch.device("meta")
    with torch.inference_mode():
        grid = HostGrid(torch.tensor([[1, 4, 6], [2, 2, 2]]), card)
        assert grid.device == card and grid.tolist() == [[1, 4, 6], [2, 2, 2]]
        sizes = torch.repeat_interleave(grid[:, 1] * grid[:, 2], grid[:, 0])
        assert isinstance(sizes, HostGrid) and sizes.tolist() == [24, 4, 4]
        assert int(sizes.max()) == 24 and [int(t) for t in sizes] == [24, 4, 4]
        assert sizes.cumsum(0, dtype=torch.int32).tolist() == [24, 28, 32]
        sizes[0] = 5
        sizes.add_(torch.ones_like(sizes))
        assert sizes.tolist() == [6, 5, 5]
        halves = sizes / 2  # the host may round numbers with a point otherwise
        assert type(halves) is torch.Tensor and halves.device == card
        together = torch.arange(3, device=card) + sizes
        assert type(together) is torch.Tensor and together.device == card
        left = sizes.to("cpu")
        assert type(left) is torch.Tensor and left.tolist() == [6, 5, 5]
        assert isinstance(sizes.to(card, dtype=torch.int32), HostGrid)
