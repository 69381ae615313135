"""Loads a half whose towers are computed by graphs: their weights are never read."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from artifacts.errors import EnvironmentFault, UsageError
from artifacts.schema import Half
from stages.models.graphs import FOLDER
from stages.models.graphs.manifest import HalfGraphs, read_manifest
from stages.models.graphs.providers import Provider
from stages.models.graphs.session import GraphSession
from stages.models.graphs.stand_in import TowerStandIn


def load_with_graphs(
    model: Path,
    half: Half,
    provider: Provider,
    like: torch.Tensor,
    load: Callable[[Sequence[str]], Any],
) -> Any:
    """Return a half with graphs in place of its towers, which `load` leaves out. What else it has
    computes in the type of `like`, and on its device. Raises PenstockError."""
    graphs = graphs_of(model, half)
    loaded = load([tower.path for tower in graphs.towers])
    sessions: Mapping[str, GraphSession] = {
        graph.file: GraphSession(model / FOLDER / graph.file, provider)
        for tower in graphs.towers
        for graph in tower.graphs
    }
    for tower in graphs.towers:
        parent, _, name = tower.path.rpartition(".")
        absent = loaded.get_submodule(tower.path)
        runs = [sessions[graph.file] for graph in tower.graphs]
        setattr(loaded.get_submodule(parent), name, TowerStandIn(absent, tower, runs, like))
    return loaded


def graphs_of(model: Path, half: Half) -> HalfGraphs:
    """Return what is said of the graphs of a half. Raises PenstockError where there are none."""
    manifest = read_manifest(model)
    if manifest is None or half not in manifest.halves:
        raise UsageError(
            f"{model} has no graphs of its {half} half",
            hint=f"Make them: penstock export {model} --to onnx --out DIR, and give --model DIR",
        )
    gone = [name for name in manifest.files_of(half) if not (model / FOLDER / name).exists()]
    if gone:
        raise EnvironmentFault(f"{model / FOLDER} lacks {gone[0]}", hint="Export the graphs again")
    return manifest.halves[half]
