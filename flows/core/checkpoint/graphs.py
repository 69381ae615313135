"""Decides whether exported graphs replace the encoders of a checkpoint, and rejects graphs that
differ from what was exported. Imports no model library."""

import ctypes
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import NamedTuple

from artifacts.digests import digest_of
from artifacts.disk.files import read_kept, write_json
from artifacts.disk.paths import machine_cache
from artifacts.errors import EnvironmentFault, UsageError
from artifacts.packages import install_command, is_installed
from artifacts.schema import HalfName, Part
from flows.core.options.commands import RunOptions
from flows.core.options.precision import TORCH
from stages.decode.engines import AUTO
from stages.export.parity import verdict_in
from stages.models.graphs import FOLDER
from stages.models.graphs.manifest import FILE, GraphManifest, HalfGraphs, read_manifest
from stages.models.graphs.sessions import ONNX, TENSORRT, provider_of
from stages.models.profile import ModelProfile
from stages.process.checks import conditions
from stages.process.device import device_capability, device_model, device_uuid, driver_version
from stages.process.host_memory import cores, cpu_line

FORMAT = 1
"""Version of the measurement; raised when it is measured differently."""


class GraphSpeed(NamedTuple):
    """Seconds that a half takes for the same work with torch and with its graphs."""

    torch: float
    graphs: float

    @property
    def ratio(self) -> float:
        """Return how many times as fast as torch the graphs are."""
        return self.torch / self.graphs


def graph_speed(device: str, graphs: str, provider: str) -> GraphSpeed | None:
    """Return the measured speed of graphs, by their digest and provider. Return None without a
    measurement of this machine and these package versions."""
    kept = read_kept(_path(device, graphs, provider), FORMAT)
    try:
        return None if kept is None else GraphSpeed(float(kept["torch"]), float(kept["graphs"]))
    except (KeyError, TypeError, ValueError):
        return None  # the file was edited


def store_speed(device: str, graphs: str, provider: str, speed: Mapping[str, float]) -> GraphSpeed:
    """Store a measured speed. Raises EnvironmentFault."""
    measured = GraphSpeed(**speed)
    write_json(_path(device, graphs, provider), {"format": FORMAT, **measured._asdict()})
    return measured


def _path(device: str, graphs: str, provider: str) -> Path:
    machine = [conditions(device), device_uuid(device), cpu_line("model name"), cores()]
    return machine_cache() / "graphs" / f"{digest_of([*machine, graphs, provider])[:16]}.json"


LIBRARIES = ("libnvinfer.so.10", "libnvonnxparser.so.10")
"""Libraries that ONNX Runtime's provider is linked with."""
INSTALL_HINT = (
    "install TensorRT 10 (not 11) from NVIDIA: pip install 'tensorrt-cu13-libs>=10.9,<11' with its "
    "own package index, and put its folder on LD_LIBRARY_PATH"
)


def missing_libraries() -> list[str]:
    """Return the names of libraries that cannot be opened."""
    return [name for name in LIBRARIES if _open_library(name) is None]


def tensorrt_version() -> str:
    """Return the installed TensorRT version, such as 10.13.2, or an empty string."""
    library = _open_library(LIBRARIES[0])
    if library is None:
        return ""
    major, rest = divmod(int(library.getInferLibVersion()), 10_000)  # 101302
    return f"{major}.{rest // 100}.{rest % 100}"


def check_tensorrt(device: str) -> None:
    """Check that TensorRT can be used. Raises EnvironmentFault."""
    if device == "cpu":
        raise EnvironmentFault(
            "--vision-backend tensorrt needs a GPU (none was found)",
            hint="Give --vision-backend onnx",
        )
    if missing := missing_libraries():
        raise EnvironmentFault(
            f"--vision-backend tensorrt: cannot open {' and '.join(missing)}",
            hint=f"{INSTALL_HINT[0].upper()}{INSTALL_HINT[1:]}; or use --vision-backend onnx",
        )


def engines_folder(local: Path, graphs: str, device: str, batch: int) -> Path:
    """Return the folder of the engines that TensorRT builds from graphs, given by digest. It is
    specific to this GPU, its driver, the TensorRT version, and the largest batch."""
    by = [device_model(device), device_capability(device), driver_version(device)]
    return local / "engines" / digest_of([graphs, *by, tensorrt_version(), batch])[:32]


def _open_library(name: str) -> ctypes.CDLL | None:
    try:
        return ctypes.CDLL(name)
    except OSError:
        return None


REEXPORT_HINT = (
    "Export the graphs again, into a new folder: penstock export MODEL --to onnx --out DIR"
)
TORCH_HINT = "--vision-backend torch needs no graphs"


@dataclass(frozen=True, kw_only=True, slots=True)
class GraphUse:
    """The graphs that a half runs with. Every field is part of the cache key."""

    backend: str
    """`onnx` or `tensorrt`."""
    provider: str
    """Name of the ONNX Runtime provider that runs them."""
    digest: str
    """Digest of the graphs' contents."""
    precision: str
    """`fp32`, `fp16` or `int8`."""
    bytes: int
    """Bytes of their files."""
    parameters: int
    """Number of checkpoint parameters that they replace."""

    @property
    def label(self) -> str:
        """Return the precision for display."""
        return f"{self.backend}-{self.precision}"


class GraphsFound(NamedTuple):
    """The graphs of a checkpoint that a run uses."""

    uses: Mapping[Part, GraphUse]
    """Part → its graphs; empty if torch computes everything."""
    note: str = ""
    """Why a run that may use graphs does or does not use them, for display."""


def graphs_for(
    config: RunOptions,
    folder: Path,
    profile: ModelProfile,
    digest: Callable[[Path], str],
    weights: Mapping[str, str],
    device: str,
) -> GraphsFound:
    """Return the graphs of a checkpoint that a run uses. `digest` returns the digest of a file, or
    an empty string if it is unknown. `weights` are the digests of the checkpoint's weight files.
    Raises PenstockError if requested graphs cannot be used."""
    if config.vision_backend == TORCH:
        return GraphsFound({})
    if (folder / FOLDER / FILE).exists():
        digest(folder / FOLDER / FILE)  # notes the file before it is read
    manifest = read_manifest(folder)
    if config.vision_backend == AUTO:
        if why := _why_unused(folder, manifest, device):
            return GraphsFound({}, _torch_note(config, why))
        by_graphs = replace(config, vision_backend=ONNX)
        graphs = graphs_for(by_graphs, folder, profile, digest, weights, device)
        return _if_faster(config, graphs, device)
    if manifest is None or "vision" not in manifest.halves:
        raise UsageError(
            f"--vision-backend {config.vision_backend}: {config.model} has no vision graphs",
            hint=f"Make them: penstock export {config.model} --to onnx --out DIR, then give "
            f"--model DIR; {TORCH_HINT}",
        )
    _check_precision(config, manifest.halves["vision"], profile)
    _check_files(folder, manifest, digest)
    uses: dict[Part, GraphUse] = {}
    for half in manifest.halves:
        uses[half] = _graph_use(config, manifest, half, device)
        _check_source(folder, manifest.halves[half], half, weights, profile)
    return GraphsFound(uses)


def _if_faster(config: RunOptions, graphs: GraphsFound, device: str) -> GraphsFound:
    """Return the graphs if they were measured to be faster than torch on this machine, else
    none."""
    vision = graphs.uses["vision"]
    speed = graph_speed(device, vision.digest, vision.provider)
    if speed is None:
        advice = f"penstock doctor --model {config.model}"
        return GraphsFound(
            {}, _torch_note(config, f"its graphs were not measured on this machine; run {advice}")
        )
    if speed.ratio <= 1:
        why = f"its graphs take {1 / speed.ratio:.2f} times as long on this machine"
        return GraphsFound({}, _torch_note(config, why))
    note = (
        f"graphs compute the vision half of {config.model}: {speed.ratio:.2f} times as fast as "
        "torch"
    )
    return graphs._replace(note=note)


def _torch_note(config: RunOptions, why: str) -> str:
    return f"torch computes what sees of {config.model}: {why}"


def _why_unused(folder: Path, manifest: GraphManifest | None, device: str) -> str:
    """Return why `auto` does not use the graphs; empty if it may."""
    if manifest is None or "vision" not in manifest.halves:
        return "it has no graphs"
    if not is_installed("onnxruntime"):
        return f"ONNX Runtime is not installed ({install_command('graphs')})"
    if manifest.halves["vision"].precision == "int8" and device != "cpu":
        return "its graphs are in int8, which is for CPUs"
    if (verdict := verdict_in(folder)) is None or not verdict.passed:
        return "its graphs were accepted, and did not pass"
    return ""


def _graph_use(
    config: RunOptions, manifest: GraphManifest, half: HalfName, device: str
) -> GraphUse:
    backend = config.vision_backend
    graphs, files = manifest.halves[half], manifest.files_of(half)
    if backend == TENSORRT:
        check_tensorrt(device)
    if graphs.precision == "int8" and device != "cpu":
        raise UsageError(
            f"the graphs of {config.model} are in int8, which is for CPUs and not for GPUs",
            hint=f"Export it with --to onnx-fp16; {TORCH_HINT}",
        )
    return GraphUse(
        backend=backend,
        provider=provider_of(backend, device),
        digest=digest_of([asdict(graphs), [manifest.files[n] for n in files]]),
        precision=graphs.precision,
        bytes=sum(manifest.sizes[name] for name in files),
        parameters=sum(encoder.parameters for encoder in graphs.towers),
    )


def _check_precision(config: RunOptions, graphs: HalfGraphs, profile: ModelProfile) -> None:
    """Check that the requested vision precision equals that of the graphs. For a captioning model,
    `--precision` refers only to what torch computes. Raises UsageError."""
    option, requested = "vision_precision", config.groups.halves.vision_precision
    if profile.route == "dual" and requested is None:
        option, requested = "precision", config.precision
    if requested not in (None, "native", "auto", graphs.precision):
        raise UsageError(
            f"--{option.replace('_', '-')} {requested} and graphs in {graphs.precision} exclude "
            "each other",
            hint=f"Leave it out, or export {requested} graphs; {TORCH_HINT}",
        )


def _check_files(folder: Path, manifest: GraphManifest, digest: Callable[[Path], str]) -> None:
    """Check that every graph file is as exported. Raises EnvironmentFault."""
    for name, expected in manifest.files.items():
        path = folder / FOLDER / name
        if not path.exists():
            raise EnvironmentFault(f"{path} is missing", hint=f"{REEXPORT_HINT}; {TORCH_HINT}")
        if digest(path) not in ("", expected):
            raise EnvironmentFault(
                f"{path} differs from the exported file: it was changed or damaged",
                hint=f"{REEXPORT_HINT}; {TORCH_HINT}",
            )


def _check_source(
    folder: Path,
    graphs: HalfGraphs,
    half: HalfName,
    weights: Mapping[str, str],
    profile: ModelProfile,
) -> None:
    """Check that the graphs were made from the weights in the folder. Raises EnvironmentFault."""
    present = {name: weights[name] for name in profile.parts[half].shards}
    known = {name: digest for name, digest in present.items() if digest}
    if any(graphs.weights.get(name) != digest for name, digest in known.items()):
        raise EnvironmentFault(
            f"the graphs in {folder / FOLDER / FILE} were made from other weights than those in "
            f"{folder}",
            hint=f"{REEXPORT_HINT}; {TORCH_HINT}",
        )
