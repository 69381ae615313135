"""The fields of a job that runs one half of a model. Imports no model library."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from artifacts.model_files import ModelFiles
from artifacts.schema import Route


@dataclass(frozen=True, kw_only=True, slots=True)
class HalfJob:
    """The half to run: its model, device and precision."""

    model: str
    """Folder or hub id."""
    revision: str | None = None
    device: str = "cpu"
    """`cpu` or `cuda:N`."""
    dtype: str = "auto"
    """Name of a torch dtype, in which the half computes; `auto` is the checkpoint's own."""
    precision: str = ""
    """`int8` or `nf4` quantizes the half; anything else says no more than `dtype`."""
    attention: str | None = None
    """Attention implementation; None is the model's default."""
    as_published: bool = False
    """Whether to compute as the model's authors published it where that is known to be
    otherwise."""
    trust_remote_code: bool = False
    route: Route = "protocol"
    """Route by which the model is run in two stages."""
    pieces: tuple[str, ...] = ()
    """Paths of the other half's pieces that this half is known to need."""
    offload: bool = False
    """Layers wait outside the device until they compute: those of the vision half, and on a CPU of
    either, in the checkpoint's files; those of the language half of a GPU in host memory."""
    together: bool = False
    """Whether many calls cross its layers together, so that each layer comes once for all; of the
    vision half it is always so."""
    backend: str = ""
    """What computes the towers of the half: graphs of the checkpoint by `onnx` or `tensorrt`;
    empty: torch."""
    graph_bytes: int = 0
    """Most bytes of a GPU that graphs may take."""
    engines: str = ""
    """Folder of what TensorRT makes of graphs."""
    adapter: str = ""
    """Folder of an adapter that is put into the half; empty: none."""
    adapted: Mapping[str, str] = field(default_factory=dict)
    """Path of each module that it changes, as it names it → as the model does."""
    max_pixels: int = 0
    """Most pixels of a picture or a frame; 0: as many as its processor says."""
    max_video_pixels: int = 0
    """Most pixels of all frames of a video together; 0: as many as its processor says."""
    mlp_chunk: int = 0
    """Positions that go through an MLP of the vision half at once; 0: all."""
    files: ModelFiles = field(default_factory=ModelFiles)
    """Those that it was planned with; none: they are not compared."""
