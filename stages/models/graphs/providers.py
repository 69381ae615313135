"""Lists ONNX Runtime's providers and their settings, and opens graphs with the requested one.

ONNX Runtime silently falls back to another provider if the requested one is unavailable, and logs
it at most. Therefore the session's actual provider is checked. A GPU provider leaves shape
computations to the CPU by design, so that is allowed.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from artifacts.errors import EnvironmentFault
from stages.process.exit_diagnosis import out_of_memory

ONNX, TENSORRT = "onnx", "tensorrt"
BACKENDS = (ONNX, TENSORRT)
"""What computes graphs, as a command names it."""
CPU, CUDA, TRT = "CPUExecutionProvider", "CUDAExecutionProvider", "TensorrtExecutionProvider"
UNREADABLE = ("INVALID_PROTOBUF", "INVALID_GRAPH", "NO_SUCHFILE")
"""Words of ONNX Runtime about a file that is no graph, whatever was to compute it."""
WORKSPACE = 2
"""Part of a stage's memory that TensorRT may take to try kernels in: one of so many."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Provider:
    """One provider with all its settings."""

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)
    fallbacks: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Providers that may compute what this one has no kernel for, with what they are told."""

    def for_session(self) -> list[Any]:
        """Return it as ONNX Runtime is told it."""
        every = {self.name: self.options, **self.fallbacks}
        return [(name, dict(options)) for name, options in every.items()]


def provider_of(backend: str, device: str) -> str:
    """Return the name of the provider by which a backend computes on a device."""
    if backend == TENSORRT:
        return TRT
    return CPU if device == "cpu" else CUDA


def provider_for(backend: str, device: str, limit: int, engines: Path | None) -> Provider:
    """Return the provider that computes on a device, within so many bytes of it. `engines` is the
    folder where TensorRT keeps what it makes of these graphs."""
    name = provider_of(backend, device)
    if name == CPU:
        return Provider(name=CPU)
    cuda = {
        "device_id": int(device.partition(":")[2] or 0),
        "gpu_mem_limit": limit,
        "arena_extend_strategy": "kSameAsRequested",
    }
    if name == CUDA:
        return Provider(name=CUDA, options=cuda)
    options: dict[str, Any] = {
        "device_id": cuda["device_id"],
        "trt_max_workspace_size": limit // WORKSPACE,
        "trt_fp16_enable": False,  # the graph says what it computes in
    }
    if engines is not None:
        engines.mkdir(parents=True, exist_ok=True)
        options |= {
            "trt_engine_cache_enable": True,
            "trt_engine_cache_path": str(engines),
            "trt_timing_cache_enable": True,
            "trt_timing_cache_path": str(engines),
        }
    return Provider(name=TRT, options=options, fallbacks={CUDA: cuda})


def open_session(path: Path, provider: Provider, threads: int) -> Any:
    """Return a session that has a graph computed by this provider. Raises EnvironmentFault where it
    would be computed by another, or the graph cannot be read."""
    import onnxruntime

    onnxruntime.set_default_logger_severity(3)
    built = onnxruntime.get_available_providers()
    if provider.name not in built:
        raise _unavailable(provider.name, f"this ONNX Runtime has {', '.join(built)}")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    # An arena keeps what the largest batch took, which a budget does not have twice.
    options.enable_cpu_mem_arena = options.enable_mem_pattern = False
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=provider.for_session())
    except Exception as error:  # of ONNX Runtime's own kinds, which share no class
        if out_of_memory(error):
            raise
        message = " ".join(str(error).split())[:200]
        if provider.name == CPU or any(word in message for word in UNREADABLE):
            raise EnvironmentFault(
                f"{path} is no graph that ONNX Runtime reads: {message}",
                hint="Export it again, or give --vision-backend torch",
            ) from error
        raise _unavailable(provider.name, message) from error
    check_provider(session, provider)
    return session


def check_provider(session: Any, provider: Provider) -> None:
    """Raise EnvironmentFault unless a session computes by the provider that was asked for."""
    found = session.get_providers()
    if found[:1] != [provider.name]:
        raise _unavailable(provider.name, f"ONNX Runtime took {', '.join(found) or 'none'} instead")


def _unavailable(name: str, why: str) -> EnvironmentFault:
    return EnvironmentFault(
        f"{name} cannot be had: {why}",
        hint="`penstock doctor` says what is missing; --vision-backend torch does without",
    )
