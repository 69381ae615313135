"""Makes an ONNX graph of one call of a tower, by transformers' own exporter. Knows no family."""

import contextlib
import io
import logging
import warnings
from collections.abc import Collection, Iterator, Mapping
from typing import Any, NamedTuple

import torch

from artifacts.tensors import name_tensors
from stages.models.graphs.graph_inputs import GraphInputs, graph_inputs
from stages.models.graphs.packed import packing
from stages.models.graphs.tower_calls import copied

OPSET = 20
"""Version of ONNX's operators that a graph is in."""

Varying = Mapping[str, Collection[int]]
"""Name of a tensor → its axes of which graphs take any length."""


class Traced(NamedTuple):
    """A graph, and what is needed to use it in a tower's stead."""

    program: Any
    """The graph, an `onnx_ir.Model`."""
    call: GraphInputs
    """What it was traced with."""
    output: dict[str, Any]
    """What the tower gives back, with the name of each tensor at its place."""
    names: tuple[str, ...]
    """Those names, in the order of the graph's outputs."""


def trace(tower: Any, given: Mapping[str, Any], packed: bool, varying: Varying) -> Traced:
    """Return the graph of a call of a tower, for any length of the axes that vary. Raises what
    torch and transformers raise at what they cannot make a graph of."""
    from transformers.exporters.configs import OnnxConfig
    from transformers.exporters.exporter_onnx import OnnxExporter

    sample = {name: copied(value) for name, value in given.items() if value is not None}
    with torch.no_grad():
        output, named = name_tensors(tower(**copied(sample)))
    call = graph_inputs(tower, copied(sample), packed)
    config = OnnxConfig(dynamic=True, opset_version=OPSET)
    attending = packing(tower) if packed else contextlib.nullcontext()
    with _quiet(), attending, _of_any_length(varying):
        exported = OnnxExporter().export(tower, sample, config)
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
