"""Keeps how fast graphs are on this machine beside torch, as `penstock doctor` measured it; imports
no model library."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from artifacts.files import read_kept, write_json
from artifacts.keys import digest_of
from artifacts.user_folders import user_cache
from flows.machine.versions import machine_identity, versions

FORMAT = 1
"""Number that rises when it is measured otherwise."""
RUNTIME = "onnxruntime-gpu"
"""Package that computes graphs."""


class GraphSpeed(NamedTuple):
    """Seconds in which a half computes the same, by torch and by its graphs."""

    torch: float
    graphs: float

    @property
    def ratio(self) -> float:
        """Return how many times as fast the graphs are."""
        return self.torch / self.graphs


def graph_speed(device: str, graphs: str, provider: str) -> GraphSpeed | None:
    """Return what was measured of graphs, by their digest and what computes them; None where
    nothing was, or on another machine or with other versions."""
    kept = read_kept(_path(device, graphs, provider), FORMAT)
    try:
        return None if kept is None else GraphSpeed(float(kept["torch"]), float(kept["graphs"]))
    except (KeyError, TypeError, ValueError):
        return None  # changed by somebody


def keep_speed(device: str, graphs: str, provider: str, speed: Mapping[str, float]) -> GraphSpeed:
    """Note what was measured. Raises EnvironmentFault."""
    found = GraphSpeed(**speed)
    write_json(_path(device, graphs, provider), {"format": FORMAT, **found._asdict()})
    return found


def _path(device: str, graphs: str, provider: str) -> Path:
    here = [*machine_identity(device).values(), versions().get(RUNTIME, "")]
    return user_cache() / "graphs" / f"{digest_of([*here, graphs, provider])[:16]}.json"
