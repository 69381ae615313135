"""The manifest of a checkpoint's graphs, and the opening of graphs with an ONNX Runtime provider.

The manifest lists the graphs' encoders, their calls and their source. The module imports no model
library.

The module lists ONNX Runtime's providers and their settings, and opens graphs with the requested
one. ONNX Runtime silently falls back to another provider if the requested one is unavailable, and
logs it at most. Therefore the module checks the session's actual provider. A GPU provider leaves
shape computations to the CPU by design, so that is allowed.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from artifacts.disk.json_shapes import ShapeError, count, number, read_json, read_record, text
from artifacts.errors import EnvironmentFault
from artifacts.schema import Half
from stages.models.graphs import FOLDER
from stages.process.exit_diagnosis import out_of_memory

ONNX, TENSORRT = "onnx", "tensorrt"
BACKENDS = (ONNX, TENSORRT)
"""Backends that run graphs, as named on the command line."""
CPU, CUDA, TRT = "CPUExecutionProvider", "CUDAExecutionProvider", "TensorrtExecutionProvider"
UNREADABLE = ("INVALID_PROTOBUF", "INVALID_GRAPH", "NO_SUCHFILE")
"""Words in ONNX Runtime's errors that mean a damaged file, whatever the provider."""
WORKSPACE = 2
"""TensorRT may use 1 / WORKSPACE of the memory limit to try kernels."""


Providers = Sequence[tuple[str, Mapping[str, Any]]]
"""Names of providers with all their settings: the requested one, and those for operators that it
does not support. It is the `providers` argument of ONNX Runtime."""


def provider_of(backend: str, device: str) -> str:
    if backend == TENSORRT:
        return TRT
    return CPU if device == "cpu" else CUDA


def providers_for(backend: str, device: str, limit: int, engines: Path | None) -> Providers:
    """Return the providers for a device, limited to `limit` bytes of it. `engines` is the folder in
    which TensorRT keeps its engines for these graphs."""
    name = provider_of(backend, device)
    if name == CPU:
        return [(CPU, {})]
    cuda = {
        "device_id": int(device.partition(":")[2] or 0),
        "gpu_mem_limit": limit,
        "arena_extend_strategy": "kSameAsRequested",
        # By default it times every algorithm of a convolution for each new batch size.
        "cudnn_conv_algo_search": "HEURISTIC",
        "use_tf32": "0",  # graphs in fp32 compute in fp32, as torch does
    }
    if name == CUDA:
        return [(CUDA, cuda)]
    options: dict[str, Any] = {
        "device_id": cuda["device_id"],
        "trt_max_workspace_size": limit // WORKSPACE,
        "trt_fp16_enable": False,  # the graph states its own types
    }
    if engines is not None:
        engines.mkdir(parents=True, exist_ok=True)
        options |= {
            "trt_engine_cache_enable": True,
            "trt_engine_cache_path": str(engines),
            "trt_timing_cache_enable": True,
            "trt_timing_cache_path": str(engines),
        }
    return [(TRT, options), (CUDA, cuda)]


def open_session(path: Path, providers: Providers, threads: int) -> Any:
    """Return a session that runs a graph with the first of these providers. Raises EnvironmentFault
    if another provider would run it, or if the graph cannot be read."""
    import onnxruntime

    name, _ = providers[0]
    onnxruntime.set_default_logger_severity(3)
    built = onnxruntime.get_available_providers()
    if name not in built:
        raise _unavailable(name, f"this ONNX Runtime has {', '.join(built)}")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    # An arena would keep the memory of the largest batch, which the budget does not include.
    options.enable_cpu_mem_arena = options.enable_mem_pattern = False
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=list(providers))
    except Exception as error:  # ONNX Runtime's errors have no common class
        if out_of_memory(error):
            raise
        message = " ".join(str(error).split())[:200]
        if name == CPU or any(word in message for word in UNREADABLE):
            raise EnvironmentFault(
                f"{path} is not a graph that ONNX Runtime can read ({message})",
                hint="Export it again, or give --vision-backend torch",
            ) from error
        raise _unavailable(name, message) from error
    check_provider(session, name)
    return session


def check_provider(session: Any, name: str) -> None:
    """Raise EnvironmentFault unless a session uses the requested provider."""
    found = session.get_providers()
    if found[:1] != [name]:
        raise _unavailable(name, f"ONNX Runtime used {', '.join(found) or 'none'} instead")


def _unavailable(name: str, why: str) -> EnvironmentFault:
    return EnvironmentFault(
        f"{name} is not available: {why}",
        hint="Run `penstock doctor` to see what is missing, or give --vision-backend torch",
    )


FILE = "graphs.json"
"""Name of the manifest file in the folder of the graphs."""
FORMAT = 1
"""Format version, raised when a program that knows another would misread the file."""
EXPORT_HINT = "Export it again: penstock export MODEL --to onnx --out DIR"


@dataclass(frozen=True, kw_only=True, slots=True)
class Graph:
    """One graph: an encoder with one form of call."""

    file: str
    """Name of its file, in the folder of the graphs."""
    inputs: Mapping[str, Sequence[int]]
    """Name of each input tensor → its shape; 0 where an axis may have any length."""
    fixed: Mapping[str, Any]
    """Values of the non-tensor arguments; the graph is valid only for these."""
    output: Mapping[str, Any]
    """The encoder's output, with the name of each tensor in its place."""
    names: tuple[str, ...]
    """Those names in the order of the graph's outputs."""
    quantized: int = 0
    """Number of matrix products that are computed in 8 bit."""

    def __post_init__(self) -> None:
        lengths = (length for axes in self.inputs.values() for length in axes)
        if not all(map(count, (self.quantized, *lengths))):
            raise ValueError(f"graph {self.file} has a number that counts nothing")


@dataclass(frozen=True, kw_only=True, slots=True)
class GraphEncoder:
    """An encoder that graphs compute."""

    path: str
    """Its path in the model."""
    class_name: str
    parameters: int
    """Number of its parameters in the checkpoint."""
    packed: bool
    """Whether it takes all images in one row."""
    graphs: tuple[Graph, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class HalfGraphs:
    """The graphs of one half."""

    precision: str
    """`fp32`, `fp16` or `int8`."""
    weights: Mapping[str, str]
    """Name of each source weight file → SHA-256 of its content."""
    towers: tuple[GraphEncoder, ...]
    furthest: float
    """Maximum difference from the encoders on noise, relative to the largest value."""
    nearness: Mapping[str, Any]
    """How close the results for texts are to those of the encoders; empty for images and videos."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GraphManifest:
    """All graphs of a checkpoint."""

    files: Mapping[str, str]
    """Name of each file beside the manifest → SHA-256 of its content."""
    sizes: Mapping[str, int]
    """Name of each of those files → its size in bytes."""
    halves: Mapping[Half, HalfGraphs]
    made_by: Mapping[str, str]
    """Name of each library → its version."""

    def __post_init__(self) -> None:
        encoders = [encoder for half in self.halves.values() for encoder in half.towers]
        sizes = (*self.sizes.values(), *(encoder.parameters for encoder in encoders))
        if not all(map(count, sizes)) or not all(number(h.furthest) for h in self.halves.values()):
            raise ValueError(f"{FILE} has a number that is out of range")
        named = [*self.files, *(graph.file for encoder in encoders for graph in encoder.graphs)]
        if any(Path(name).name != name or name.startswith(".") for name in named):
            raise ValueError(f"{FILE} names a file outside its folder")

    def to_json(self) -> dict[str, Any]:
        return {"format": FORMAT, **asdict(self)}

    def files_of(self, half: Half) -> list[str]:
        """Return the names of the files of a half's graphs: graph files, and files of their
        external weights."""
        named = {graph.file for encoder in self.halves[half].towers for graph in encoder.graphs}
        return sorted(name for name in self.files if any(name.startswith(n) for n in named))


def read_manifest(model: Path) -> GraphManifest | None:
    """Return the manifest of a checkpoint's graphs; None if Penstock exported none. Raises
    EnvironmentFault."""
    path = model / FOLDER / FILE
    if not path.exists():
        return None
    fields = read_json(path, {"format": count}, EXPORT_HINT, _check_text)
    if (written := fields.pop("format")) != FORMAT:
        raise EnvironmentFault(
            f"{FILE} has format {written}, and this version reads {FORMAT}", hint=EXPORT_HINT
        )
    try:
        return read_record(GraphManifest, fields)
    except TypeError as error:
        raise EnvironmentFault(f"{path} cannot be read: {error}", hint=EXPORT_HINT) from error


def _check_text(fields: Any) -> None:
    """Raise ShapeError for a string that UTF-8 cannot encode: it could be neither shown nor made
    part of a key."""
    if not text(json.dumps(fields, ensure_ascii=False)):
        raise ShapeError("it has a string that is not Unicode")
