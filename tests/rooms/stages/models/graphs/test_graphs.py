"""Graphs stand in for towers: what they are told and refuse, attention over segments of unlike
lengths, and every family's towers in graphs. No family is named in the program."""

import functools
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from artifacts.errors import EnvironmentFault, UsageError
from artifacts.schema import HalfName
from stages.export.graphs.make import quantize_graph
from stages.models.graphs.manifest import FILE, Graph, GraphEncoder, GraphManifest, read_manifest
from stages.models.graphs.onnx_encoder import (
    GraphInputs,
    OnnxEncoder,
    fits,
    index_of,
    pack,
    packed_attention,
)
from stages.models.graphs.sessions import (
    CPU,
    CUDA,
    TRT,
    check_provider,
    open_session,
    providers_for,
)
from stages.models.halves.absent import MissingModule
from stages.process.exit_diagnosis import out_of_memory
from tests.support.graph_verdict import AGREES, judge_dual_graphs, judge_graphs
from tests.support.tiny_families import FAMILIES
from tests.support.tiny_families.parts import (
    MROPE,
    NONE,
    TOKENS,
    Built,
    config_of,
    finish,
    model_of,
    patches,
    text,
)
from tests.support.tiny_families.shared import stream

ENDS = torch.tensor([0, 5, 6, 14, 16])


def test_segments_of_unlike_lengths_attend_to_themselves_alone() -> None:
    torch.manual_seed(0)
    query, key, value = (torch.randn(1, heads, 16, 8) for heads in (4, 2, 2))
    found, _ = packed_attention(torch.nn.Module(), query, key, value, cu_seq_lens_q=ENDS)
    attend = torch.nn.functional.scaled_dot_product_attention
    parts = []
    for first, last in pairwise(ENDS.tolist()):
        request, known, message = (part[:, :, first:last] for part in (query, key, value))
        parts.append(attend(request, known, message, enable_gqa=True).transpose(1, 2))
    torch.testing.assert_close(found, torch.cat(parts, dim=1), rtol=1e-5, atol=1e-5)
    for longest in (8, torch.zeros(9)):
        given: Any = {"cu_seq_lens_q": ENDS, "max_length_q": longest}
        message, _ = packed_attention(torch.nn.Module(), query, key, value, **given)
        torch.testing.assert_close(message, found, rtol=1e-5, atol=1e-5)


def test_the_longest_segment_becomes_a_length_once_and_segments_places() -> None:
    inputs: dict[str, Any] = {"cu_seqlens": ENDS, "max_seqlen": 8, "other": 8}
    pack(inputs)
    assert inputs["cu_seqlens"] is ENDS and inputs["other"] == 8
    longest = inputs["max_seqlen"]
    assert longest.shape == (8,)
    pack(inputs)
    assert inputs["max_seqlen"] is longest
    index = index_of(ENDS, 8)
    assert index.shape == (4, 8) and index[1].tolist() == [5, *[-1] * 7]


GRAPH = Graph(
    file="vision-0.onnx", inputs={"pixels": [0, 3, 8]}, fixed={"hidden": True}, output={}, names=()
)


@pytest.mark.parametrize(
    ("shape", "fixed", "taken"),
    [
        ((5, 3, 8), {"hidden": True}, True),
        ((5, 3, 9), {"hidden": True}, False),
        ((5, 3), {"hidden": True}, False),
        ((5, 3, 8), {}, False),
    ],
)
def test_a_graph_is_called_only_as_it_was_traced(
    shape: tuple[int, ...], fixed: dict[str, Any], taken: bool
) -> None:
    assert fits(GRAPH, GraphInputs({"pixels": torch.zeros(shape)}, fixed)) is taken


class Session:
    """What a session says computes it."""

    def __init__(self, *providers: str) -> None:
        self._providers = list(providers)

    def get_providers(self) -> list[str]:
        return self._providers


def test_another_provider_than_was_asked_for_is_refused() -> None:
    check_provider(Session(CUDA, CPU), CUDA)
    for found in ([CPU], [], [CPU, CUDA]):
        with pytest.raises(EnvironmentFault, match=f"{CUDA} is not available") as caught:
            check_provider(Session(*found), CUDA)
        assert "--vision-backend torch" in str(caught.value.hint)


def test_a_provider_that_is_not_built_in_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import onnxruntime

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CPU])
    with pytest.raises(EnvironmentFault, match="this ONNX Runtime has CPUExecutionProvider"):
        open_session(tmp_path / "any.onnx", [(TRT, {})], 1)


def test_a_fall_to_the_cpu_is_refused(tmp_path: Path) -> None:
    path = plain_graph(tmp_path, "Relu")
    for name in (CUDA, TRT):
        with pytest.raises(EnvironmentFault, match=f"{name} is not available"):
            open_session(path, [(name, {"device_id": 0})], 1)


def test_tensorrt_is_told_where_it_keeps_what_it_makes_and_what_it_may_take(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import onnxruntime

    messages: list[Any] = []

    def session(path: str, options: Any, providers: list[Any]) -> Session:
        messages.extend(providers)
        return Session(TRT, CUDA, CPU)

    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [TRT, CUDA, CPU])
    provider = providers_for("tensorrt", "cuda:1", 4 << 30, tmp_path / "engines")
    open_session(tmp_path / "any.onnx", provider, 1)
    (first, engine), (second, cuda) = messages
    assert (first, second) == (TRT, CUDA)
    assert engine["trt_engine_cache_path"] == str(tmp_path / "engines")
    assert engine["trt_engine_cache_enable"] and engine["trt_timing_cache_enable"]
    assert engine["trt_max_workspace_size"] == 2 << 30 and cuda["gpu_mem_limit"] == 4 << 30
    assert (cuda["cudnn_conv_algo_search"], cuda["use_tf32"]) == ("HEURISTIC", "0")
    assert engine["device_id"] == cuda["device_id"] == 1
    assert (tmp_path / "engines").is_dir()


def plain_graph(folder: Path, operator: str, weight: Any = None) -> Path:
    """A graph of one operator, with a weight or without."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    weights = [] if weight is None else [numpy_helper.from_array(weight, "weight")]
    columns = {"x": 4, "y": 4} if weight is None else dict(zip("xy", weight.shape, strict=True))
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", count])
        for name, count in columns.items()
    ]
    node = helper.make_node(operator, ["x", *(each.name for each in weights)], ["y"])
    graph = helper.make_graph([node], "plain", ends[:1], ends[1:], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, str(folder / "plain.onnx"))
    return folder / "plain.onnx"


def test_a_graph_without_products_is_not_called_quantized(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="plain has no product that can be quantized to 8 bit"):
        quantize_graph(plain_graph(tmp_path, "Relu"), tmp_path / "quantized.onnx")


def test_sums_of_a_graph_in_8_bit_fit_the_16_bits_of_processors_without_vnni(
    tmp_path: Path,
) -> None:
    import numpy as np
    import onnx
    from onnx import numpy_helper

    drawn = np.random.default_rng(0).standard_normal((64, 32), np.float32)
    product = plain_graph(tmp_path, "MatMul", drawn)
    assert quantize_graph(product, tmp_path / "quantized.onnx") == 1
    made = onnx.load(str(tmp_path / "quantized.onnx"))
    arrays = map(numpy_helper.to_array, made.graph.initializer)
    (numbers,) = (array.astype(int) for array in arrays if array.shape == drawn.shape)
    # They multiply bytes of 0 to 255 by weights, and add two products in 16 bit (VPMADDUBSW).
    largest = 255 * np.abs(numbers[0::2] + numbers[1::2]).max()
    assert largest < 2**15
    assert {entry.key: entry.value for entry in made.metadata_props}["penstock.weight_bits"] == "7"
    assert 60 <= np.abs(numbers).max() <= 64


def test_what_is_no_graph_is_said(tmp_path: Path) -> None:
    (tmp_path / "bad.onnx").write_bytes(b"no graph at all")
    with pytest.raises(EnvironmentFault, match="is not a graph that ONNX Runtime can read"):
        open_session(tmp_path / "bad.onnx", [(CPU, {})], 1)


def manifest_with(folder: Path, **changes: Any) -> Path:
    """A model with a manifest that somebody changed."""
    message = GraphManifest(files={"a.onnx": "0" * 64}, sizes={"a.onnx": 1}, halves={}, made_by={})
    (folder / "onnx").mkdir()
    (folder / "onnx" / FILE).write_text(json.dumps({**message.to_json(), **changes}))
    return folder


HALF = {"precision": "fp32", "weights": {}, "towers": [], "furthest": 0.0, "nearness": {}}
TOWER = {"path": "a", "class_name": "A", "parameters": 1, "packed": False, "graphs": []}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"format": 99}, "has format 99"),
        ({"files": {"../a.onnx": "0"}}, "names a file outside its folder"),
        ({"files": 3}, "cannot be read"),
        ({"halves": {"vision": {}}}, "cannot be read"),
        ({"halves": {"vision": {**HALF, "more": 1}}}, "has no field more"),
        ({"halves": {"tactile": HALF}}, "cannot be read"),
        ({"halves": {"vision": {**HALF, "towers": [{**TOWER, "parameters": -1}]}}}, "`int` >= 0"),
        ({"sizes": {"a.onnx": -1}}, "`int` >= 0"),
        ({"sizes": {"a.onnx": 10**400}}, "`int` <= "),
        ({"halves": {"vision": {**HALF, "furthest": 1e300}}}, "`float` < "),
        ({"halves": "\ud800"}, "a string that is not Unicode"),
        ({"made_by": {"torch": "\ud800"}}, "a string that is not Unicode"),
        ({"more": 1}, "has no field more"),
    ],
)
def test_a_manifest_that_was_changed_is_one_line(
    tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(EnvironmentFault, match=words) as caught:
        read_manifest(manifest_with(tmp_path, **changes))
    assert "\n" not in caught.value.message and caught.value.hint


def test_a_manifest_is_read_as_it_was_written(tmp_path: Path) -> None:
    found = read_manifest(manifest_with(tmp_path))
    assert found is not None and found.files == {"a.onnx": "0" * 64}
    assert read_manifest(tmp_path / "elsewhere") is None


ROOT = Path(__file__).parents[5]
NAMES = (
    *("blip_2", "chameleon", "glm4v", "internvl", "llama4", "qwen2_5_vl"),
    *("cosmos3_edge", "hunyuan_vl", "lighton_ocr", "minicpmv4_6", "muse_spark"),
)
"""Families of each kind of encoder, and of each reason why graphs are refused; `make models` judges
all of them."""
SAID: dict[HalfName, str] = {"vision": "vision", "language": "text"}
HALVES = [(name, half) for name in ("blip", "clip", "siglip2") for half in SAID]


def shallow(rows: int, video: bool) -> Built:
    """A tower with a layer that attends in windows and one that attends to all."""
    reader = text(rope_parameters=MROPE, head_dim=NONE, num_hidden_layers=1)
    tower = patches(depth=2, window_size=16, fullatt_block_indexes=[1])
    model = model_of(config_of("Qwen2_5_VL", reader, tower, **TOKENS))
    return finish(model, stream(rows, video), rows, video, types="mm_token_type_ids")


@pytest.mark.slow
def test_graphs_of_a_tower_of_pictures_agree(tmp_path: Path) -> None:
    verdict = judge_graphs("llava", tmp_path)
    assert verdict.result == AGREES and verdict.graphs == 1
    assert verdict.results["image, batch 3 again"] == AGREES, "no export saw three"


@pytest.mark.slow
def test_a_graph_takes_pictures_whose_windows_are_of_unequal_length(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, rows in (("shallow", 1), ("shallow:b2", 2)):
        monkeypatch.setitem(FAMILIES, name, functools.partial(shallow, rows, False))
    verdict = judge_graphs("shallow", tmp_path)
    assert verdict.result == AGREES and verdict.graphs == 1
    assert verdict.column("mixed") == AGREES


@pytest.mark.parametrize(
    ("words", "memory"),
    [
        ("Non-zero status code returned while running Split node", False),
        ("Failed to allocate memory for requested buffer of size 4096", True),
    ],
)
def test_what_a_graph_does_not_take_is_said_in_one_line(words: str, memory: bool) -> None:
    def run(_: object) -> list[torch.Tensor]:
        raise RuntimeError(words)

    ends: Any = {"inputs": {"input": [0, 2]}, "output": {"tensor": "out"}, "names": ("out",)}
    kind: Any = {"class_name": "Linear", "parameters": 1, "packed": False}
    graphs = (Graph(file="g.onnx", fixed={}, **ends),)
    tower = GraphEncoder(path="towers.0", graphs=graphs, **kind)
    skeleton = torch.nn.Linear(2, 2, device="meta")
    stand_in = OnnxEncoder(MissingModule(skeleton, "towers.0"), tower, [run], torch.empty(0))
    with pytest.raises(RuntimeError if memory else UsageError, match=words) as raised:
        stand_in(torch.zeros(3, 2))
    assert out_of_memory(raised.value) is memory
    if not memory:
        texts = str(raised.value)
        assert "towers.0" in texts and "[3, 2]" in texts and "\n" not in texts


def page_rows() -> dict[str, list[str]]:
    """Rows of the table: name → cells."""
    page = (ROOT / "docs" / "models.md").read_text()
    part = page.partition("\n## Graphs\n")[2]
    lines = [line for line in part.splitlines() if line.startswith("| ")][1:]
    rows = ([cell.strip() for cell in line.strip("|").split(" | ")] for line in lines)
    return {row[0]: row[1:] for row in rows}


def agreeing(cells: list[str]) -> bool:
    """Whether all that the row tells of was tried, and agrees."""
    return set(cells[2:6]) <= {AGREES, ""} and AGREES in cells and not cells[6].strip()


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_graphs_of_a_family_do_as_the_page_says(name: str, tmp_path: Path) -> None:
    if "processor time" in page_rows()[name][-1]:
        pytest.skip("an export takes minutes")
    verdict = judge_graphs(name, tmp_path)
    assert not verdict.result.startswith("differs")
    assert (verdict.result == AGREES) is agreeing(page_rows()[name])


@pytest.mark.slow
@pytest.mark.parametrize(("name", "half"), HALVES)
def test_graphs_of_a_dual_encoder_do_as_the_page_says(
    name: str, half: HalfName, tmp_path: Path
) -> None:
    verdict = judge_dual_graphs(name, half, tmp_path)
    assert not verdict.result.startswith("differs")
    assert (verdict.result == AGREES) is agreeing(page_rows()[f"{name}, {SAID[half]} half"])
