"""Makes the graphs of one half: finds its towers, traces each way in which they are called, and
tries the graphs in their place."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from artifacts.errors import PenstockError, UsageError
from artifacts.schema import Half
from stages.export.graphs.agreeing import KEPT, check_agreement, difference
from stages.export.graphs.samples import Trial
from stages.export.graphs.saving import quantize_graph, save_graph
from stages.export.graphs.tracing import Traced, Varying, trace
from stages.models.graphs.graph_inputs import GraphInputs, graph_inputs, is_packed
from stages.models.graphs.manifest import Graph, GraphTower
from stages.models.graphs.providers import CPU, Provider
from stages.models.graphs.session import GraphSession
from stages.models.graphs.stand_in import TowerStandIn, fits
from stages.models.graphs.tower_calls import TowerCall, tower_calls
from stages.models.halves.absent import Absent, NeedsWeights
from stages.process.exit_diagnosis import out_of_memory


@dataclass(slots=True)
class GraphsMade:
    """The graphs of one half, as far as they are made."""

    towers: dict[str, GraphTower] = field(default_factory=dict)
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
    for asked in _asked(half, [call for run in watched for call in run.calls]):
        _take(half, part, asked, made, folder, precision)
    if not made.towers:
        raise UsageError(
            f"the {part} half calls no part of its own that could be a graph",
            hint="Leave it in torch",
        )
    _put(half, made, folder)
    for trial, run in zip(tried, watched, strict=True):
        apart = difference(run.made, _tried(trial, half))
        check_agreement(precision, trial.name, apart, ", ".join(made.towers))
        made.furthest = max(made.furthest, apart)
    return made


def _tried(trial: Trial, half: Any) -> Any:
    """Return what graphs make. Raises UsageError where they do not take it."""
    try:
        return trial.run(half)
    except UsageError as error:
        raise UsageError(f"{error.message}; that was tried with {trial.name}", hint=KEPT) from error


@dataclass(frozen=True, kw_only=True, slots=True)
class _Asked:
    """A call that a graph is wanted of."""

    call: TowerCall
    packed: bool
    inputs: GraphInputs
    varying: Varying
    """Axes whose lengths are not the same in all calls of the kind."""


def _asked(half: Any, calls: Sequence[TowerCall]) -> list[_Asked]:
    """Return the calls, with what a graph of each is given, and what of that varies."""
    found, kinds = [], dict[str, list[GraphInputs]]()
    packed: dict[str, bool] = {}
    for call in calls:
        tower = half.get_submodule(call.path)
        row = packed.setdefault(call.path, is_packed(tower, call.given))
        given = graph_inputs(tower, call.given, row)
        axes = {name: value.ndim for name, value in given.tensors.items()}
        kind = kinds.setdefault(f"{call.path} {sorted(axes.items())} {given.fixed}", [])
        kind.append(given)
        found.append((call, row, given, kind))
    return [
        _Asked(call=call, packed=row, inputs=given, varying=_varying(kind))
        for call, row, given, kind in found
    ]


def _varying(kind: Sequence[GraphInputs]) -> Varying:
    """Return the axes whose lengths differ."""
    found: dict[str, tuple[int, ...]] = {}
    for name, first in kind[0].tensors.items():
        shapes = [given.tensors[name].shape for given in kind]
        found[name] = tuple(a for a in range(first.ndim) if len({shape[a] for shape in shapes}) > 1)
    return found


def _take(
    half: Any, part: Half, asked: _Asked, made: GraphsMade, folder: Path, precision: str
) -> None:
    """Make the graph of a call, unless there is one that answers it."""
    path = asked.call.path
    tower = half.get_submodule(path)
    known = made.towers.get(path)
    if known and any(fits(graph, asked.inputs) for graph in known.graphs):
        return
    number = sum(len(tower.graphs) for tower in made.towers.values())
    graph = _graph(tower, asked, folder / f"{part}-{number}.onnx", precision)
    made.towers[path] = GraphTower(
        path=path,
        class_name=type(tower).__name__,
        parameters=sum(weight.numel() for weight in tower.parameters()),
        packed=asked.packed,
        graphs=(*(known.graphs if known else ()), graph),
    )


def _graph(tower: nn.Module, asked: _Asked, path: Path, precision: str) -> Graph:
    traced = _traced(tower, asked)
    inputs = {value.name: _lengths(value) for value in traced.program.graph.inputs}
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


def _traced(tower: nn.Module, asked: _Asked) -> Traced:
    try:
        return trace(tower, asked.call.given, asked.packed, asked.varying)
    except (PenstockError, NeedsWeights):
        raise
    except Exception as error:  # an exporter may fail at a class in any way
        if out_of_memory(error):
            raise
        words = " ".join(str(error).split())[:200] or type(error).__name__
        raise UsageError(
            f"no graph can be made of {asked.call.path} ({type(tower).__name__}): {words}",
            hint=KEPT,
        ) from error


def _put(half: Any, made: GraphsMade, folder: Path) -> None:
    """Put the graphs in place of the towers."""
    like = torch.empty(0, dtype=half.dtype)
    for path, tower in made.towers.items():
        parent, _, name = path.rpartition(".")
        absent = Absent(half.get_submodule(path), path)
        runs = [GraphSession(folder / g.file, Provider(name=CPU)) for g in tower.graphs]
        setattr(half.get_submodule(parent), name, TowerStandIn(absent, tower, runs, like))
