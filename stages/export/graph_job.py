"""The job of making graphs of the towers of halves, and what it takes; imports no library."""

from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from artifacts.errors import EnvironmentFault
from artifacts.model_files import ModelFiles
from artifacts.schema import Half, Route
from stages.models.half_job import HalfJob

GRAPHS = {"onnx": "fp32", "onnx-fp16": "fp16", "onnx-int8": "int8"}
"""Kinds of graphs → what they compute in."""

PACKAGES = ("onnx", "onnxscript")
"""Packages that graphs are made with, and that running them does without."""


def check_packages() -> None:
    """Raise EnvironmentFault where what graphs are made with is not installed."""
    for name in PACKAGES:
        try:
            version(name)
        except PackageNotFoundError as error:
            raise EnvironmentFault(
                f"graphs are made with {' and '.join(PACKAGES)}, and {name} is not installed",
                hint="Install them: pip install 'onnx>=1.23' 'onnxscript>=0.7.2'",
            ) from error


@dataclass(frozen=True, kw_only=True, slots=True)
class GraphJob:
    """The checkpoint to write, and of which halves of what it has graphs."""

    model: str
    """Folder of the checkpoint that it is made of."""
    recipe: dict[str, Any]
    """All that decides the bytes that are written."""
    folder: str
    """Folder to write to."""
    kind: str
    """One of GRAPHS."""
    weights: dict[Half, dict[str, str]]
    """Half that gets graphs → name of each file of its weights → SHA-256 of its content."""
    frames_a_video: int = 0
    """Frames that a video must have; 0: any number."""
    pieces: dict[Half, list[str]]
    """Half → paths of the other half's pieces that it is known to need."""
    route: Route = "protocol"
    as_published: bool = False
    """Whether the checkpoint is one that is run as published."""
    trust_remote_code: bool = False
    files: ModelFiles = field(default_factory=ModelFiles)
    """Those that it was planned with; none: they are not compared."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TimingJob:
    """A half as torch computes it, to be measured beside its graphs."""

    half: HalfJob
    graphs: str
    """What computes the graphs."""
    frames_a_video: int = 0
    """Frames that a video must have; 0: any number."""
