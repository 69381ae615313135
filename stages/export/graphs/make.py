"""Makes the graphs of one half: finds its encoders, traces each kind of call, and tests the graphs
in their place."""

import contextlib
import io
import json
import logging
import shutil
import sys
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from artifacts.errors import PenstockError, UsageError
from artifacts.schema import Half
from artifacts.tensors import name_tensors
from stages.export.graphs.samples import Trial
from stages.memory.meta_tensors import tensors
from stages.models.graphs.graph_inputs import GraphInputs, described, graph_inputs, is_packed
from stages.models.graphs.manifest import Graph, GraphTower
from stages.models.graphs.onnx_encoder import OnnxTower, fits
from stages.models.graphs.packed import packing
from stages.models.graphs.providers import CPU, Provider
from stages.models.graphs.session import GraphSession
from stages.models.graphs.tower_calls import TowerCall, copied, tower_calls
from stages.models.halves.absent import MissingModule, NeedsWeights
from stages.process.exit_diagnosis import out_of_memory

FURTHEST = {"fp32": 1e-3, "fp16": 5e-2}
"""What a graph computes in → by how much it may differ from its tower, in parts of the largest
number. In 8 bit real pictures tell, and noise does not: only what is no number is refused."""

KEPT = "Keep this model's vision half in torch: its classes cannot be exported"


def difference(reference: Any, found: Any) -> float:
    """Return by how much one half's features differ from another's, at the most, in parts of the
    largest number; infinite where they are of other shapes or no numbers."""
    first, second = list(_of(reference)), list(_of(found))
    if [one.shape for one in first] != [one.shape for one in second]:
        return float("inf")
    pairs = zip(first, second, strict=True)
    apart = [float((a - b).abs().max() / (a.abs().max() + 1e-9)) for a, b in pairs if a.numel()]
    worst = max(apart, default=0.0)
    return worst if worst == worst else float("inf")


def check_agreement(precision: str, tried: str, apart: float, path: str) -> None:
    """Raise UsageError where graphs make something else than the towers do."""
    if apart > FURTHEST.get(precision, sys.float_info.max):
        raise UsageError(
            f"the graph of {path} does not compute what the model does: {apart:.2g} apart, with "
            f"{tried}",
            hint=KEPT,
        )


def _of(made: Any) -> Iterator[torch.Tensor]:
    values = dict(made) if isinstance(made, dict) else made
    yield from (value.detach().double().cpu() for value in tensors(values))


PRODUCTS = ("MatMul", "Gemm")
"""Operators whose weights are put into 8 bit."""
IN_8_BIT = ("MatMulInteger", "DynamicQuantizeMatMul", "QGemm")
"""Operators that they become."""


def save_graph(program: Any, path: Path) -> None:
    """Write a graph, its numbers in a file beside it, which ONNX Runtime maps."""
    import onnx_ir

    for graph in program.graphs():
        for node in graph:
            # Stacks of calls, with paths of the machine that it was traced on.
            node.metadata_props.clear()
            node.doc_string = None
    program.producer_version = None
    onnx_ir.save(program, str(path), external_data=f"{path.name}.data")


def quantize_graph(path: Path, out: Path) -> int:
    """Write a graph again with the weights of its products in 8 bit, a scale a column, and return
    how many those are. What they are multiplied by is rounded while it computes. Raises UsageError
    where there are none: nothing else would say so."""
    import onnx
    from onnxruntime.quantization import quantize_dynamic

    graph = onnx.load(str(path))
    # The exporter describes constants twice, and the quantizer takes the second for a product.
    known = {constant.name for constant in graph.graph.initializer}
    kept = [value for value in graph.graph.value_info if value.name not in known]
    del graph.graph.value_info[:]
    graph.graph.value_info.extend(kept)
    quantize_dynamic(
        graph,
        str(out),
        op_types_to_quantize=list(PRODUCTS),
        per_channel=True,
        extra_options={"MatMulConstBOnly": True},
        use_external_data_format=True,
    )
    made = onnx.load(str(out), load_external_data=False)
    count = sum(node.op_type in IN_8_BIT for node in made.graph.node)
    if not count:
        raise UsageError(
            f"no product of {path.stem} could be put into 8 bit",
            hint="Export it with --to onnx or onnx-fp16",
        )
    return count


INPUTS = "penstock.inputs"
"""Entry of a graph's metadata: JSON, input → its type and meaning."""
OPSET = 20
"""Version of ONNX's operators that a graph is in."""

Varying = Mapping[str, Collection[int]]
"""Name of a tensor → its axes of which graphs take any length."""


class Traced(NamedTuple):
    """A graph, and what is needed to run it in place of an encoder."""

    program: Any
    """The graph, an `onnx_ir.Model`."""
    call: GraphInputs
    """What it was traced with."""
    output: dict[str, Any]
    """What the tower gives back, with the name of each tensor at its place."""
    names: tuple[str, ...]
    """Those names, in the order of the graph's outputs."""


def trace(encoder: Any, given: Mapping[str, Any], packed: bool, varying: Varying) -> Traced:
    """Return the graph of a call of a tower, for any length of the axes that vary. Raises what
    torch and transformers raise at what they cannot make a graph of."""
    from transformers.exporters.configs import OnnxConfig
    from transformers.exporters.exporter_onnx import OnnxExporter

    sample = {name: copied(value) for name, value in given.items() if value is not None}
    with torch.no_grad():
        output, named = name_tensors(encoder(**copied(sample)))
    call = graph_inputs(encoder, copied(sample), packed)
    config = OnnxConfig(dynamic=True, opset_version=OPSET)
    attending = packing(encoder) if packed else contextlib.nullcontext()
    with _quiet(), attending, _of_any_length(varying):
        exported = OnnxExporter().export(encoder, sample, config)
    return Traced(exported.program, call, output, tuple(named))


@contextlib.contextmanager
def _of_any_length(varying: Varying) -> Iterator[None]:
    """Have transformers' exporter take these axes alone for ones of any length, while inside. It
    takes all, and what is known of none takes minutes to reckon with."""
    from transformers.exporters import exporter_dynamo
    from transformers.exporters.utils import patch_attribute

    def lengths(value: Any, name: str) -> Any:
        if isinstance(value, torch.Tensor):
            return dict.fromkeys(varying.get(name, ()), torch.export.Dim.AUTO) or None
        if isinstance(value, list | tuple):
            return type(value)(lengths(part, f"{name}.{at}") for at, part in enumerate(value))
        if isinstance(value, Mapping):
            return {key: lengths(part, f"{name}.{key}") for key, part in value.items()}
        return None

    def shapes(inputs: Mapping[str, Any]) -> dict[str, Any]:
        return {name: lengths(value, name) for name, value in inputs.items()}

    with patch_attribute(exporter_dynamo, "get_auto_dynamic_shapes", lambda _: shapes):
        yield


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Have the exporters say nothing: they tell of each axis, each symbol and each step."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


@dataclass(slots=True)
class GraphsMade:
    """The graphs of one half that have been made so far."""

    encoders: dict[str, GraphTower] = field(default_factory=dict)
    """Path → tower."""
    furthest: float = 0.0
    """Most that they differ from the towers, in parts of the largest number."""


def make_graphs(
    half: Any, part: Half, tried: Sequence[Trial], folder: Path, precision: str
) -> GraphsMade:
    """Write the graphs of a half into a folder, and try them. The half has them afterwards in place
    of its towers. Raises UsageError for one that cannot be exported, or is otherwise then."""
    made = GraphsMade()
    watched = [tower_calls(half, partial(trial.run, half)) for trial in tried]
    for request in _graph_requests(half, [call for run in watched for call in run.calls]):
        _add_graph(half, part, request, made, folder, precision)
    if not made.encoders:
        raise UsageError(
            f"the {part} half calls no part of its own that could be a graph",
            hint="Leave it in torch",
        )
    _install(half, made, folder)
    for trial, run in zip(tried, watched, strict=True):
        apart = difference(run.made, _run_trial(trial, half))
        check_agreement(precision, trial.name, apart, ", ".join(made.encoders))
        made.furthest = max(made.furthest, apart)
    return made


def _run_trial(trial: Trial, half: Any) -> Any:
    """Return what graphs make. Raises UsageError where they do not take it."""
    try:
        return trial.run(half)
    except UsageError as error:
        raise UsageError(f"{error.message}; that was tried with {trial.name}", hint=KEPT) from error


@dataclass(frozen=True, kw_only=True, slots=True)
class _GraphRequest:
    """A call for which a graph is wanted."""

    call: TowerCall
    packed: bool
    inputs: GraphInputs
    varying: Varying
    """Axes whose lengths are not the same in all calls of the kind."""


def _graph_requests(half: Any, calls: Sequence[TowerCall]) -> list[_GraphRequest]:
    """Return the calls, with what a graph of each is given, and what of that varies."""
    found, kinds = [], dict[str, list[GraphInputs]]()
    packed: dict[str, bool] = {}
    for call in calls:
        encoder = half.get_submodule(call.path)
        row = packed.setdefault(call.path, is_packed(encoder, call.given))
        given = graph_inputs(encoder, call.given, row)
        axes = {name: value.ndim for name, value in given.tensors.items()}
        kind = kinds.setdefault(f"{call.path} {sorted(axes.items())} {given.fixed}", [])
        kind.append(given)
        found.append((call, row, given, kind))
    return [
        _GraphRequest(call=call, packed=row, inputs=given, varying=_varying(kind))
        for call, row, given, kind in found
    ]


def _varying(kind: Sequence[GraphInputs]) -> Varying:
    """Return the axes whose lengths differ."""
    found: dict[str, tuple[int, ...]] = {}
    for name, first in kind[0].tensors.items():
        shapes = [given.tensors[name].shape for given in kind]
        found[name] = tuple(a for a in range(first.ndim) if len({shape[a] for shape in shapes}) > 1)
    return found


def _add_graph(
    half: Any, part: Half, request: _GraphRequest, made: GraphsMade, folder: Path, precision: str
) -> None:
    """Make the graph of a call, unless there is one that answers it."""
    path = request.call.path
    encoder = half.get_submodule(path)
    known = made.encoders.get(path)
    if known and any(fits(graph, request.inputs) for graph in known.graphs):
        return
    number = sum(len(encoder.graphs) for encoder in made.encoders.values())
    graph = _graph(encoder, request, folder / f"{part}-{number}.onnx", precision)
    made.encoders[path] = GraphTower(
        path=path,
        class_name=type(encoder).__name__,
        parameters=sum(weight.numel() for weight in encoder.parameters()),
        packed=request.packed,
        graphs=(*(known.graphs if known else ()), graph),
    )


def _graph(encoder: nn.Module, request: _GraphRequest, path: Path, precision: str) -> Graph:
    traced = _traced(encoder, request)
    inputs = {value.name: _lengths(value) for value in traced.program.graph.inputs}
    known = described(encoder, traced.call.tensors)
    meanings = {name: known[name] for name in inputs if name in known}
    traced.program.metadata_props[INPUTS] = json.dumps(meanings, sort_keys=True)
    quantized = 0
    if precision == "int8":
        whole = path.parent / "whole" / path.name
        whole.parent.mkdir(exist_ok=True)
        save_graph(traced.program, whole)
        traced = traced._replace(program=None)  # or its numbers would be there twice
        quantized = quantize_graph(whole, path)
        shutil.rmtree(whole.parent)
    else:
        save_graph(traced.program, path)
    return Graph(
        file=path.name,
        inputs=inputs,
        fixed=traced.call.fixed,
        output=traced.output,
        names=traced.names,
        quantized=quantized,
    )


def _lengths(value: Any) -> list[int]:
    """Return the shape that a graph's input must have; 0 where an axis may have any length."""
    return [length if isinstance(length, int) else 0 for length in value.shape]


def _traced(encoder: nn.Module, request: _GraphRequest) -> Traced:
    try:
        return trace(encoder, request.call.given, request.packed, request.varying)
    except (PenstockError, NeedsWeights):
        raise
    except Exception as error:  # an exporter may fail at a class in any way
        if out_of_memory(error):
            raise
        message = " ".join(str(error).split())[:200] or type(error).__name__
        raise UsageError(
            f"no graph can be made of {request.call.path} ({type(encoder).__name__}): {message}",
            hint=KEPT,
        ) from error


def _install(half: Any, made: GraphsMade, folder: Path) -> None:
    """Put the graphs in place of the towers."""
    like = torch.empty(0, dtype=half.dtype)
    for path, encoder in made.encoders.items():
        parent, _, name = path.rpartition(".")
        absent = MissingModule(half.get_submodule(path), path)
        runs = [GraphSession(folder / g.file, Provider(name=CPU)) for g in encoder.graphs]
        setattr(half.get_submodule(parent), name, OnnxTower(absent, encoder, runs, like))
