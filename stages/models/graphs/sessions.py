"""Lists ONNX Runtime's providers with their settings, and opens graphs with the requested one.

ONNX Runtime silently falls back to another provider if the requested one is unavailable, and
logs it at most. Therefore the module checks the session's actual provider. A GPU provider leaves
shape computations to the CPU by design, so that is allowed.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from artifacts.errors import EnvironmentFault
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
    providers = session.get_providers()
    if providers[:1] != [name]:
        raise _unavailable(name, f"ONNX Runtime used {', '.join(providers) or 'none'} instead")


def _unavailable(name: str, why: str) -> EnvironmentFault:
    return EnvironmentFault(
        f"{name} is not available: {why}",
        hint="Run `penstock doctor` to see what is missing, or give --vision-backend torch",
    )
