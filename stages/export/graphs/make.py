"""Makes the graphs of one half: finds its encoders, traces each kind of call, and tests the graphs
in place of the encoders.

The images and texts that trace and test a half are noise of several sizes, prepared by the model's
own processor.
"""

import contextlib
import io
import json
import logging
import re
import shutil
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from artifacts.errors import PenstockError, UsageError
from artifacts.packages import install_command
from artifacts.records.tensors import Node, name_tensors
from artifacts.schema import HalfName, MediaKind
from stages.embed_texts.run import TextReader
from stages.memory.meta_device import tensors
from stages.models.dry_run import quiet
from stages.models.graphs.manifest import Graph, GraphEncoder
from stages.models.graphs.onnx_encoder import (
    EncoderCall,
    GraphInputs,
    GraphSession,
    OnnxEncoder,
    copied,
    described,
    encoder_calls,
    fits,
    graph_inputs,
    is_packed,
    packing,
)
from stages.models.graphs.sessions import CPU
from stages.models.halves.absent import MissingModule, NeedsWeights
from stages.models.halves.features import encode, text_vectors
from stages.models.halves.model_class import PIXELS
from stages.models.processors.blank_clips import Clip, clip_of
from stages.models.processors.images import prepare_images
from stages.models.processors.loading import takes_videos
from stages.models.processors.prepare import prepare
from stages.models.processors.processor_calls import joined
from stages.models.processors.side_inputs import Prepared
from stages.models.protocols import Half, Processor, Tree, module_of
from stages.process.exit_diagnosis import out_of_memory

PROMPTS = ("describe ", "describe what is seen here in one sentence ", "what is that? ")
"""Prompts for each size, for halves that read text; they have different lengths."""
SIZES = ((168, 112), (280, 196), (140, 308))
"""Height and width of test images; the last gives windows of different sizes."""
FRAMES = (4, 6, 2)
"""Frames of test videos for each size, if the model takes any number."""
BATCHES = (2, 1, 4)
"""Items per batch for each size; a graph is traced with the first."""
TEXTS = (
    "a photo of a cat",
    "two red squares move to the left, and a blue circle stays where it is",
    "night",
    "an old harbour, seen from a hill in the rain",
)


PARITY_TEXTS = 256
"""Number of texts on which a text half is tested."""
LETTERS = re.compile(r"[^A-Za-z]|</w>")
"""Non-letters of a token, such as marks of word boundaries."""
SHORTEST = 3
"""Fewest letters of a word."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Trial:
    """One test input and the call that runs a half on it."""

    name: str
    """Description of the input for the user."""
    run: Callable[[Half], Any]
    """Runs a half and returns its output."""


def trials(
    half: Half, part: HalfName, processor: Processor, *, dual: bool, frames_per_video: int
) -> Iterator[Trial]:
    """Yield the test inputs of a half. The first of each kind has several items, and its graph is
    traced."""
    if part == "language":
        reader = TextReader(processor, half)
        # One text is read without padding, to find out whether the output depends on it.
        for count, filled in ((len(TEXTS), False), (1, False), (2, bool(reader.max_tokens))):
            inputs = reader.inputs(TEXTS[:count], padded=filled)
            run = partial(text_vectors, inputs=inputs)
            yield Trial(name=f"{count} texts{' filled up' * filled}", run=run)
        return
    takes_both = not dual and takes_videos(processor)
    kinds: Sequence[MediaKind] = ("image", "video") if takes_both else ("image",)
    for kind in kinds:
        for size, rows, any_number, prompt in zip(SIZES, BATCHES, FRAMES, PROMPTS, strict=True):
            frames = 1 if kind == "image" else frames_per_video or any_number
            clips = [_noise(kind, frames, *size, seed) for seed in range(rows)]
            prepared = [_prepared(processor, clip, dual, prompt) for clip in clips]
            name = f"{rows} x {kind} of {size[1]} x {size[0]}"
            yield Trial(name=name, run=_run_images(prepared))
        mixed = [_noise(kind, frames, *size, 0) for size in SIZES]
        prepared = [_prepared(processor, clip, dual, PROMPTS[0]) for clip in mixed]
        # Images of different sizes need an input with the patches of all images concatenated.
        if any(n in PIXELS and getattr(v, "ndim", 0) == 2 for n, v in prepared[0].inputs.items()):
            yield Trial(name=f"{kind}s of different sizes", run=_run_images(prepared))


def texts_of(processor: Processor) -> list[str]:
    """Return texts of words from the model's vocabulary, as users write them in searches."""
    known = sorted(processor.tokenizer.get_vocab())
    known_words = [letters for token in known if (letters := LETTERS.sub("", token)).isalpha()]
    known_words = [word for word in known_words if len(word) >= SHORTEST] or list(TEXTS)
    drawn = np.random.default_rng(0).integers(len(known_words), size=(PARITY_TEXTS, 2))
    return [f"a photo of {known_words[first]} and {known_words[second]}" for first, second in drawn]


def _noise(kind: MediaKind, count: int, height: int, width: int, seed: int) -> Clip:
    drawn = np.random.default_rng(seed).integers(0, 255, (count, height, width, 3), dtype=np.uint8)
    return clip_of(kind, drawn)


def _prepared(processor: Processor, clip: Clip, dual: bool, prompt: str) -> Prepared:
    return prepare_images(processor, clip) if dual else prepare(processor, clip, prompt)


def _run_images(rows: Sequence[Prepared]) -> Callable[[Half], Any]:
    inputs = {name: joined([row.inputs[name] for row in rows]) for name in rows[0].inputs}
    return lambda half: encode(half, inputs)


MAX_DIFFERENCE = {"fp32": 1e-3, "fp16": 5e-2}
"""Precision of a graph → largest accepted difference from its encoder, relative to the largest
number. For 8 bit, noise is no measure, so only NaN and infinity are refused here; real images are
compared later."""

KEPT = "Run this model's vision half in torch: its classes cannot be exported"


def difference(reference: Any, other: Any) -> float:
    """Return the largest difference of one half's features from another's, relative to the largest
    number. It is infinite for other shapes or NaN."""
    first, second = list(_of(reference)), list(_of(other))
    if [tensor.shape for tensor in first] != [tensor.shape for tensor in second]:
        return float("inf")
    pairs = zip(first, second, strict=True)
    apart = [float((a - b).abs().max() / (a.abs().max() + 1e-9)) for a, b in pairs if a.numel()]
    worst = max(apart, default=0.0)
    return worst if worst == worst else float("inf")


def check_agreement(precision: str, tried: str, apart: float, path: str) -> None:
    """Raise UsageError if graphs compute something else than the encoders."""
    if apart > MAX_DIFFERENCE.get(precision, sys.float_info.max):
        raise UsageError(
            f"the graph of {path} differs from the model (relative difference {apart:.2g}, tested "
            f"with {tried})",
            hint=KEPT,
        )


def _of(made: Any) -> Iterator[torch.Tensor]:
    yield from (value.detach().double().cpu() for value in tensors(made))


PRODUCTS = ("MatMul", "Gemm")
"""Operators whose weights are quantized to 8 bit."""
IN_8_BIT = ("MatMulInteger", "DynamicQuantizeMatMul", "QGemm")
"""Operators that replace them."""


def save_graph(program: Any, path: Path) -> None:
    """Write a graph, and its weights into a file next to it, which ONNX Runtime maps."""
    import onnx_ir

    for graph in program.graphs():
        for node in graph:
            # Remove call stacks, which hold paths of this machine.
            node.metadata_props.clear()
            node.doc_string = None
    program.producer_version = None
    onnx_ir.save(program, str(path), external_data=f"{path.name}.data")


def quantize_graph(path: Path, out: Path) -> int:
    """Write a copy of a graph with the weights of its products as 8-bit integers that use 7 bits,
    one scale per column, and return how many were quantized. Their inputs are quantized at run
    time. Raises UsageError if there are none, because nothing else would report that."""
    import onnx
    from onnxruntime.quantization import quantize_dynamic

    graph = onnx.load(str(path))
    # The exporter describes constants twice; the quantizer takes the second one for a product.
    initializers = {constant.name for constant in graph.graph.initializer}
    values_kept = [value for value in graph.graph.value_info if value.name not in initializers]
    del graph.graph.value_info[:]
    graph.graph.value_info.extend(values_kept)
    graph.metadata_props.add(key=WEIGHT_BITS, value="7")
    quantize_dynamic(
        graph,
        str(out),
        op_types_to_quantize=list(PRODUCTS),
        per_channel=True,
        # Processors without VNNI add two products in 16 bit, which saturates from 2^15 on: of 8-bit
        # weights after 255 * 127 * 2. A graph is carried to other machines, so it never depends on
        # this one.
        reduce_range=True,
        extra_options={"MatMulConstBOnly": True},
        use_external_data_format=True,
    )
    quantized = onnx.load(str(out), load_external_data=False)
    count = sum(node.op_type in IN_8_BIT for node in quantized.graph.node)
    if not count:
        raise UsageError(
            f"{path.stem} has no product that can be quantized to 8 bit",
            hint="Export it with --to onnx or onnx-fp16",
        )
    return count


INPUTS = "penstock.inputs"
"""Entry of a graph's metadata: JSON, input → its type and meaning."""
WEIGHT_BITS = "penstock.weight_bits"
"""Entry of the metadata of a graph in 8 bit: the bits that a weight uses."""
OPSET = 20
"""Version of ONNX's operator set."""

Varying = Mapping[str, Collection[int]]
"""Name of a tensor → axes of variable length."""


class Traced(NamedTuple):
    """A graph, and what is needed to run it in place of an encoder."""

    program: Any
    """The graph, an `onnx_ir.Model`."""
    call: GraphInputs
    """The inputs that it was traced with."""
    output: Node
    """The output of the encoder, with tensor names in place of tensors."""
    names: tuple[str, ...]
    """Tensor names in the order of the outputs of the graph."""


def trace(encoder: Any, given: Mapping[str, Tree], packed: bool, varying: Varying) -> Traced:
    """Return the graph of an encoder's call, with variable lengths for the axes in `varying`.
    Raises errors of torch and transformers for unsupported operations."""
    from transformers.exporters.configs import OnnxConfig
    from transformers.exporters.exporter_onnx import OnnxExporter

    sample = {name: copied(value) for name, value in given.items() if value is not None}
    with torch.no_grad():
        output, named = name_tensors(encoder(**copied(sample)))
    call = graph_inputs(encoder, copied(sample), packed)
    config = OnnxConfig(dynamic=True, opset_version=OPSET)
    attending = packing(encoder) if packed else contextlib.nullcontext()
    with (
        quiet(logging.ERROR),
        contextlib.redirect_stdout(io.StringIO()),
        attending,
        _of_any_length(varying),
    ):
        exported = OnnxExporter().export(encoder, sample, config)
    return Traced(exported.program, call, output, tuple(named))


@contextlib.contextmanager
def _of_any_length(varying: Varying) -> Iterator[None]:
    """Within this block, make transformers' exporter treat only these axes as variable. By default
    it treats all axes so, which takes minutes."""
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

    def shapes(inputs: Mapping[str, Tree]) -> dict[str, Any]:
        return {name: lengths(value, name) for name, value in inputs.items()}

    with patch_attribute(exporter_dynamo, "get_auto_dynamic_shapes", lambda _: shapes):
        yield


Encoders = dict[str, GraphEncoder]
"""Path → encoder with the graphs that have been made of it."""


def make_graphs(
    half: Half, part: HalfName, tried: Sequence[Trial], folder: Path, precision: str
) -> tuple[Encoders, float]:
    """Write the graphs of a half into a folder and test them. Return them, and their largest
    difference from the encoders, relative to the largest number. Afterwards the half runs the
    graphs in place of its encoders. Raises UsageError if an encoder cannot be exported, or if its
    graph computes something else."""
    encoders: Encoders = {}
    watched = [encoder_calls(module_of(half), partial(trial.run, half)) for trial in tried]
    for request in _graph_requests(half, [call for _, calls in watched for call in calls]):
        _add_graph(half, part, request, encoders, folder, precision)
    if not encoders:
        raise UsageError(
            f"the {part} half has no encoder that can be exported as a graph",
            hint="Run it in torch",
        )
    like = torch.empty(0, dtype=half.dtype)
    for path, encoder in encoders.items():
        absent = MissingModule(half.get_submodule(path), path)
        runs = [GraphSession(folder / g.file, [(CPU, {})]) for g in encoder.graphs]
        half.set_submodule(path, OnnxEncoder(absent, encoder, runs, like))
    furthest = 0.0
    for trial, (expected, _) in zip(tried, watched, strict=True):
        apart = difference(expected, _run_trial(trial, half))
        check_agreement(precision, trial.name, apart, ", ".join(encoders))
        furthest = max(furthest, apart)
    return encoders, furthest


def _run_trial(trial: Trial, half: Half) -> Any:
    """Run a half with graphs on a trial. Raises UsageError if they do not accept its input."""
    try:
        return trial.run(half)
    except UsageError as error:
        raise UsageError(f"{error.message} (tested with {trial.name})", hint=KEPT) from error


class _GraphRequest(NamedTuple):
    """A call that needs a graph."""

    call: EncoderCall
    packed: bool
    inputs: GraphInputs
    varying: Varying
    """Axes whose lengths differ among the calls of this kind."""


def _graph_requests(half: Half, calls: Sequence[EncoderCall]) -> list[_GraphRequest]:
    """Return the calls, each with the inputs of its graph and their varying axes."""
    grouped, kinds = [], dict[str, list[GraphInputs]]()
    packed: dict[str, bool] = {}
    for call in calls:
        encoder = half.get_submodule(call.path)
        row = packed.setdefault(call.path, is_packed(encoder, call.given))
        graph_arguments = graph_inputs(encoder, call.given, row)
        axes = {name: value.ndim for name, value in graph_arguments.tensors.items()}
        kind = kinds.setdefault(f"{call.path} {sorted(axes.items())} {graph_arguments.fixed}", [])
        kind.append(graph_arguments)
        grouped.append((call, row, graph_arguments, kind))
    return [
        _GraphRequest(call, row, graph_arguments, _varying(kind))
        for call, row, graph_arguments, kind in grouped
    ]


def _varying(kind: Sequence[GraphInputs]) -> Varying:
    """Return the axes whose lengths differ."""
    axes: dict[str, tuple[int, ...]] = {}
    for name, first in kind[0].tensors.items():
        shapes = [given.tensors[name].shape for given in kind]
        axes[name] = tuple(a for a in range(first.ndim) if len({shape[a] for shape in shapes}) > 1)
    return axes


def _add_graph(
    half: Half, part: HalfName, request: _GraphRequest, made: Encoders, folder: Path, precision: str
) -> None:
    """Make the graph of a call, unless an existing graph accepts it."""
    path = request.call.path
    encoder = half.get_submodule(path)
    described_graph = made.get(path)
    if described_graph and any(fits(graph, request.inputs) for graph in described_graph.graphs):
        return
    number = sum(len(encoder.graphs) for encoder in made.values())
    graph = _graph(encoder, request, folder / f"{part}-{number}.onnx", precision)
    made[path] = GraphEncoder(
        path=path,
        class_name=type(encoder).__name__,
        parameters=sum(weight.numel() for weight in encoder.parameters()),
        packed=request.packed,
        graphs=(*(described_graph.graphs if described_graph else ()), graph),
    )


def _graph(encoder: nn.Module, request: _GraphRequest, path: Path, precision: str) -> Graph:
    traced = _traced(encoder, request)
    inputs = {  # 0 for an axis of any length
        value.name: [length if isinstance(length, int) else 0 for length in value.shape]
        for value in traced.program.graph.inputs
    }
    described_inputs = described(encoder, traced.call.tensors)
    meanings = {
        name: described_inputs[tensor]
        for name in inputs
        if (tensor := name.removeprefix("input.")) in described_inputs
    }
    traced.program.metadata_props[INPUTS] = json.dumps(meanings, sort_keys=True)
    quantized = 0
    if precision == "int8":
        whole_graph = path.parent / "whole" / path.name
        whole_graph.parent.mkdir(exist_ok=True)
        save_graph(traced.program, whole_graph)
        traced = traced._replace(program=None)  # otherwise its weights would be in memory twice
        quantized = quantize_graph(whole_graph, path)
        shutil.rmtree(whole_graph.parent)
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


def _traced(encoder: nn.Module, request: _GraphRequest) -> Traced:
    try:
        return trace(encoder, request.call.given, request.packed, request.varying)
    except (PenstockError, NeedsWeights):
        raise
    except ImportError as error:  # transformers names what is missing or too old
        raise UsageError(f"{error}", hint=f"Run {install_command('export')}") from error
    except Exception as error:  # an exporter may raise any error
        if out_of_memory(error):
            raise
        message = " ".join(str(error).split())[:200] or type(error).__name__
        raise UsageError(
            f"{request.call.path} ({type(encoder).__name__}) cannot be exported as a graph: "
            f"{message}",
            hint=KEPT,
        ) from error
