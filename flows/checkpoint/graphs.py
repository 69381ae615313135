"""Finds out whether exported graphs replace the encoders of a checkpoint, and refuses graphs that
differ from what was exported. Imports no model library.
"""

import ctypes
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import NamedTuple

from artifacts.errors import EnvironmentFault, UsageError
from artifacts.files import read_kept, write_json
from artifacts.keys import digest_of
from artifacts.schema import Half, Part
from artifacts.user_folders import user_cache
from flows.machine.versions import machine_identity, versions
from flows.options.commands import RunOptions
from flows.options.model import TORCH, HalfPrecisionOptions
from stages.decode.engines import AUTO
from stages.export.parity import verdict_in
from stages.models.graphs import FOLDER
from stages.models.graphs.manifest import FILE, GraphManifest, HalfGraphs, read_manifest
from stages.models.graphs.providers import ONNX, TENSORRT, provider_of
from stages.models.profile import ModelProfile
from stages.process.device import device_capability, device_model, driver_version

FORMAT = 1
"""Number that rises when it is measured otherwise."""
RUNTIME = "onnxruntime-gpu"
"""Package that computes graphs."""


class GraphSpeed(NamedTuple):
    """Seconds that a half takes for the same work with torch and with its graphs."""

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


LIBRARIES = ("libnvinfer.so.10", "libnvonnxparser.so.10")
"""Libraries that ONNX Runtime's provider is linked with."""
GET = (
    "install TensorRT 10 (not 11) from NVIDIA: pip install 'tensorrt-cu13-libs>=10.9,<11' with its "
    "own package index, and put its folder on LD_LIBRARY_PATH"
)


def missing_libraries() -> list[str]:
    """Return the names of the libraries that cannot be opened."""
    return [name for name in LIBRARIES if _opened(name) is None]


def tensorrt_version() -> str:
    """Return the version that is installed, such as 10.13.2; empty where there is none."""
    library = _opened(LIBRARIES[0])
    if library is None:
        return ""
    major, rest = divmod(int(library.getInferLibVersion()), 10_000)  # 101302
    return f"{major}.{rest // 100}.{rest % 100}"


def check_tensorrt(device: str) -> None:
    """Raise EnvironmentFault where TensorRT cannot be had."""
    if device == "cpu":
        raise EnvironmentFault(
            "--vision-backend tensorrt needs a GPU, and there is none",
            hint="Give --vision-backend onnx",
        )
    if missing := missing_libraries():
        raise EnvironmentFault(
            f"--vision-backend tensorrt needs {' and '.join(missing)}, which cannot be opened",
            hint=f"{GET[0].upper()}{GET[1:]}; --vision-backend onnx does without",
        )


def engines_folder(local: Path, graphs: str, device: str, batch: int) -> Path:
    """Return where TensorRT keeps what it makes of graphs, by their digest: for this GPU, its
    driver and version, and batches of at most so many."""
    by = [device_model(device), device_capability(device), driver_version(device)]
    return local / "engines" / digest_of([graphs, *by, tensorrt_version(), batch])[:32]


def _opened(name: str) -> ctypes.CDLL | None:
    try:
        return ctypes.CDLL(name)
    except OSError:
        return None


AGAIN = "Export the graphs again, into a new folder: penstock export MODEL --to onnx --out DIR"
IN_TORCH = "--vision-backend torch does without"


@dataclass(frozen=True, kw_only=True, slots=True)
class GraphUse:
    """The graphs that a half runs with. Every field is part of the cache key."""

    backend: str
    """`onnx` or `tensorrt`."""
    provider: str
    """Name that ONNX Runtime has for what computes them."""
    digest: str
    """Digest of all that the graphs hold."""
    precision: str
    """`fp32`, `fp16` or `int8`."""
    bytes: int
    """Bytes of their files."""
    parameters: int
    """Count of the numbers of the checkpoint that they stand for."""

    @property
    def label(self) -> str:
        """Return the precision as people are told it."""
        return f"{self.backend}-{self.precision}"


class GraphsFound(NamedTuple):
    """The graphs of a checkpoint that a run uses."""

    uses: Mapping[Part, GraphUse]
    """Part → its graphs; none where torch computes all."""
    note: str = ""
    """Why a run that may use them does or does not, for people."""


def graphs_for(
    config: RunOptions,
    folder: Path,
    profile: ModelProfile,
    digest: Callable[[Path], str],
    weights: Mapping[str, str],
    device: str,
) -> GraphsFound:
    """Return the graphs of a checkpoint that a run uses. `digest` tells the digest of a file, or
    nothing where it is not known; `weights` are those of the checkpoint's. Raises PenstockError for
    graphs that are asked for and cannot be used."""
    if config.vision_backend == TORCH:
        return GraphsFound({})
    if (folder / FOLDER / FILE).exists():
        digest(folder / FOLDER / FILE)  # noted before it is read
    manifest = read_manifest(folder)
    if config.vision_backend == AUTO:
        if why := _kept_from(folder, manifest, device):
            return GraphsFound({}, _torch_does(config, why))
        by_graphs = replace(config, vision_backend=ONNX)
        found = graphs_for(by_graphs, folder, profile, digest, weights, device)
        return _faster(config, found, device)
    if manifest is None or "vision" not in manifest.halves:
        raise UsageError(
            f"{config.model} has no graphs of its vision half",
            hint=f"Make them: penstock export {config.model} --to onnx --out DIR, then give "
            f"--model DIR; {IN_TORCH}",
        )
    _check_precision(config, manifest.halves["vision"], profile)
    _check_files(folder, manifest, digest)
    uses: dict[Part, GraphUse] = {}
    for half in manifest.halves:
        uses[half] = _use(config, manifest, half, device)
        _check_source(folder, manifest.halves[half], half, weights, profile)
    return GraphsFound(uses)


def _faster(config: RunOptions, found: GraphsFound, device: str) -> GraphsFound:
    """Return the graphs where they are faster here than torch, by what was measured; else none."""
    vision = found.uses["vision"]
    speed = graph_speed(device, vision.digest, vision.provider)
    if speed is None:
        advice = f"penstock doctor --measure --model {config.model}"
        return GraphsFound({}, _torch_does(config, f"its graphs were not measured here: {advice}"))
    if speed.ratio <= 1:
        why = f"its graphs take {1 / speed.ratio:.2f} times as long here"
        return GraphsFound({}, _torch_does(config, why))
    told = f"graphs compute what sees of {config.model}: {speed.ratio:.2f} times as fast here"
    return found._replace(note=told)


def _torch_does(config: RunOptions, why: str) -> str:
    return f"torch computes what sees of {config.model}: {why}"


def _kept_from(folder: Path, manifest: GraphManifest | None, device: str) -> str:
    """Return why graphs are not used by themselves; empty when they may be."""
    if manifest is None or "vision" not in manifest.halves:
        return "it has no graphs"
    if manifest.halves["vision"].precision == "int8" and device != "cpu":
        return "its graphs are in int8, which is for processors"
    if verdict_in(folder).get("passed") is not True:
        return "its graphs were accepted, and did not pass"
    return ""


def _use(config: RunOptions, manifest: GraphManifest, half: Half, device: str) -> GraphUse:
    backend = config.vision_backend
    graphs, files = manifest.halves[half], manifest.files_of(half)
    if backend == TENSORRT:
        check_tensorrt(device)
    if graphs.precision == "int8" and device != "cpu":
        raise UsageError(
            f"the graphs of {config.model} are in int8, which is for processors, and not for GPUs",
            hint=f"Export it with --to onnx-fp16; {IN_TORCH}",
        )
    return GraphUse(
        backend=backend,
        provider=provider_of(backend, device),
        digest=digest_of([asdict(graphs), [manifest.files[n] for n in files]]),
        precision=graphs.precision,
        bytes=sum(manifest.sizes[name] for name in files),
        parameters=sum(tower.parameters for tower in graphs.towers),
    )


def _check_precision(config: RunOptions, graphs: HalfGraphs, profile: ModelProfile) -> None:
    """Raise UsageError where the vision half is asked for in another precision than its graphs. Of
    a model that captions `--precision` is of what torch computes."""
    option, asked = "vision_precision", HalfPrecisionOptions.of(config).vision_precision
    if profile.route == "dual" and asked is None:
        option, asked = "precision", config.precision
    if asked not in (None, "native", "auto", graphs.precision):
        raise UsageError(
            f"--{option.replace('_', '-')} {asked} and graphs in {graphs.precision} exclude each "
            "other",
            hint=f"Leave it out, or export {asked} graphs; {IN_TORCH}",
        )


def _check_files(folder: Path, manifest: GraphManifest, digest: Callable[[Path], str]) -> None:
    """Raise EnvironmentFault unless every file of graphs is as it was written."""
    for name, wanted in manifest.files.items():
        path = folder / FOLDER / name
        if not path.exists():
            raise EnvironmentFault(f"{path} is gone", hint=f"{AGAIN}; {IN_TORCH}")
        if digest(path) not in ("", wanted):
            raise EnvironmentFault(
                f"{path} is not what was exported: it was changed or damaged",
                hint=f"{AGAIN}; {IN_TORCH}",
            )


def _check_source(
    folder: Path,
    graphs: HalfGraphs,
    half: Half,
    weights: Mapping[str, str],
    profile: ModelProfile,
) -> None:
    """Raise EnvironmentFault where the weights are others than the graphs were made of."""
    here = {name: weights[name] for name in profile.parts[half].shards}
    known = {name: digest for name, digest in here.items() if digest}
    if any(graphs.weights.get(name) != digest for name, digest in known.items()):
        raise EnvironmentFault(
            f"{folder / FOLDER / FILE} says that its graphs were made of other weights than those "
            f"in {folder}",
            hint=f"{AGAIN}; {IN_TORCH}",
        )
