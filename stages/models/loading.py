"""Loads the half that a job names, on its device and in its precision."""

import contextlib
import logging
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from artifacts.disk.json_shapes import Json
from artifacts.errors import EnvironmentFault, UsageError
from artifacts.schema import HalfName, Part
from stages.memory.cuda_graphs import is_switched_off
from stages.memory.oom_retry import trim_freed_blocks
from stages.models.adapter_injection import adapted, adapted_modules
from stages.models.half_job import HalfJob
from stages.models.halves.boundary import group_windows
from stages.models.halves.chunked_mlps import chunk_position_wise
from stages.models.halves.generate import offloaded_bytes
from stages.models.halves.load import load_half
from stages.models.halves.model_class import config_and_class, one_line, skeleton_of
from stages.models.halves.placement import placement
from stages.models.halves.ranged_reads import NOTE
from stages.models.halves.recorded import RECORDER, PassRecorder, keep_grids_on_host
from stages.models.halves.reloadable import ReloadableHalf
from stages.models.hub.quantized import is_read_here
from stages.models.hub.resolve import resolve_model
from stages.models.precision.quantize import KINDS, check, count, keep_to_dtype, plan
from stages.models.precision.weights import attention_of, for_half, stored_modules
from stages.models.processors.loading import load_processor
from stages.models.protocols import Half, Processor
from stages.models.stored.layer_names import model_names, stored_settings
from stages.models.stored.layers import FORM
from stages.models.streaming.load import load_in_turn, load_streamed
from stages.models.streaming.pinned import load_pinned
from stages.process.deferred_imports import STAYS, import_asking_cuda, import_transformers
from stages.process.job import JobFields, parse_job

if TYPE_CHECKING:
    from transformers import PreTrainedModel

DEFAULT_ATTENTION = ("sdpa", "+")
"""Attention implementations that a model selects by default: SDPA if all its classes support it, or
one implementation for some classes and another for the rest."""
LOAD_SECONDS = "penstock_load_seconds"
"""Attribute of a half: how long it was loaded."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelJob(HalfJob):
    """A job that loads the half it names."""

    def __post_init__(self) -> None:
        if self.dtype != "auto" and not isinstance(getattr(torch, self.dtype, None), torch.dtype):
            raise UsageError(
                f"dtype is {self.dtype}, which is no precision of torch",
                hint="Use auto, float32, bfloat16 or float16",
            )

    @classmethod
    def of(cls, half: HalfJob) -> "ModelJob":
        return cls(**{field.name: getattr(half, field.name) for field in fields(HalfJob)})

    def processor(self) -> Processor:
        """Return the processor. Raises ModelChanged if its files differ from those planned with."""
        with self.files.compared():
            folder = resolve_model(Path(self.model), self.revision)
            ready = _ready.pop((folder, self.trust_remote_code), None)
            return ready or load_processor(
                folder,
                self.trust_remote_code,
                generates=self.route != "dual",
                max_pixels=self.max_pixels,
                max_video_pixels=self.max_video_pixels,
                as_published=self.as_published,
                today=self.today,
            )

    def load_reloadable(self, keep: HalfName) -> ReloadableHalf:
        """Load the half on its device, with the extra modules that it needs, unless an earlier
        stage of this process has loaded the same. A model without boundary is loaded whole. Raises
        ModelChanged if its files differ from those planned with."""
        part: Part = "whole" if self.route == "joint" else keep
        for job, loaded, half in _loaded:
            if (job, loaded) == (self, part):
                half.model.__dict__[LOAD_SECONDS] = 0.0
                return half
        load = partial(self._load, part)
        half = ReloadableHalf(part, load, self.extra_modules, self.files, offloaded=self.offload)
        if STAYS[0]:
            _loaded.append((self, part, half))
        return half

    def _load(self, keep: Part, extra_modules: Iterable[str]) -> Half:
        began = time.monotonic()
        with trim_freed_blocks():
            half = self.load(keep, extra_modules)
        half.__dict__[LOAD_SECONDS] = round(time.monotonic() - began, 3)
        return half

    def load(self, keep: Part, extra_modules: Iterable[str] = ()) -> Half:
        """Load that part on its device, with its adapter. Raises EnvironmentFault if the result
        does not have the requested precision."""
        if not self.adapter:
            return self._load_unadapted(keep, extra_modules)
        if self.offload:
            raise UsageError(
                "a half with an adapter cannot be offloaded",
                hint="Ask for a lower precision, or give it more memory",
            )
        return adapted(self._load_unadapted(keep, extra_modules), Path(self.adapter), self.adapted)

    def _load_unadapted(self, keep: Part, extra_modules: Iterable[str]) -> Half:
        from transformers.utils.logging import disable_progress_bar

        disable_progress_bar()
        folder = resolve_model(Path(self.model), self.revision)
        config, cls = config_and_class(folder, self.trust_remote_code)
        if self.gguf and keep == "language":
            return self._with_gguf(folder, config, skeleton_of(config, cls), extra_modules)
        has_attention = self.attention is not None and not any(
            w in self.attention for w in DEFAULT_ATTENTION
        )
        options: dict[str, Any] = {
            "trust_remote_code": self.trust_remote_code,
            "as_published": self.as_published,
        }
        settings = stored_settings(config)
        quantized = self.precision in KINDS or settings is not None
        options["packed"] = self.packed and is_read_here(settings)
        options["dtype"] = self.dtype if self.dtype == "auto" else getattr(torch, self.dtype)
        if self.device != "cpu":
            options["device_map"] = {"": self.device}
        dtype = options["dtype"] if self.dtype != "auto" else config.dtype or torch.float32
        load = partial(load_half, folder, keep, extra_modules=extra_modules, **options)
        if self.backend:
            like = torch.empty(0, dtype=dtype, device=self.device)
            return self._with_graphs(folder, keep, load, like)
        if not (has_attention or quantized or self.offload):
            return self._checked(load(), keep, extra_modules)
        skeleton = skeleton_of(config, cls)
        if has_attention:
            load = partial(load, attn_implementation=for_half(skeleton, keep, str(self.attention)))
        if self.offload:
            if quantized:
                raise UsageError(
                    "a quantized half cannot be offloaded",
                    hint="Ask for native, bf16 or fp16, or give it more memory",
                )
            load_offloaded = load_in_turn if self.device == "cpu" else load_pinned
            if keep == "vision" or self.lockstep:
                load_offloaded = load_streamed
            place = partial(placement, skeleton, keep, tuple(extra_modules), self.device)
            return self._checked(load_offloaded(load, place, self.device), keep, extra_modules)
        if is_read_here(settings):
            return self._checked(self._with_stored(load), keep, extra_modules)
        # Only local files: those of the other half may be missing.
        stored = stored_modules(skeleton, (name for _, name in _tensors(folder)))
        planned = plan(skeleton, keep, self.precision, dtype, stored)
        with _attention_errors(self.attention):
            half = load(**planned.options)
        check(half, planned)
        keep_to_dtype(half)
        # Otherwise it warns at every layer of every step about 8-bit products of 16-bit numbers.
        logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
        return self._checked(half, keep, extra_modules)

    def _with_stored(self, load: Callable[[], Half]) -> Half:
        """Load the half of a checkpoint that another program than bitsandbytes quantized. Raises
        UsageError if another precision was requested."""
        if self.precision in KINDS:
            raise UsageError(
                f"the checkpoint was saved quantized, and cannot be converted to {self.precision}",
                hint="Leave --precision out, or use the checkpoint it was made from",
            )
        with _attention_errors(self.attention):
            return load()

    def _with_graphs(
        self, folder: Path, keep: Part, load: Callable[..., Half], like: torch.Tensor
    ) -> Half:
        from stages.models.graphs.onnx_encoder import load_with_graphs
        from stages.models.graphs.sessions import providers_for

        assert keep != "whole"
        engines = Path(self.engines) if self.engines else None
        providers = providers_for(self.backend, self.device, self.graph_bytes, engines)
        return load_with_graphs(folder, keep, providers, like, lambda paths: load(without=paths))

    def _with_gguf(
        self, folder: Path, config: Any, skeleton: "PreTrainedModel", extra_modules: Iterable[str]
    ) -> Half:
        """Load the half with its decoder in llama.cpp. The rest of it computes in 32 bit."""
        from stages.models.gguf.half import load_with_gguf
        from stages.models.gguf.user_file import fitted

        options: dict[str, Any] = {"as_published": self.as_published, "dtype": torch.float32}
        load = partial(load_half, folder, "language", extra_modules=extra_modules, **options)
        stored = stored_weights(folder, skeleton)
        half = load_with_gguf(
            fitted(Path(self.gguf), config, skeleton, stored, Path(self.gguf_copy)),
            config,
            skeleton,
            lambda paths: load(without=paths),
            on_gpu=self.device.startswith("cuda"),
        )
        decoder: Any = half.get_decoder()
        decoder.context.reserve(self.gguf_tokens)
        return half

    def _checked(self, half: Half, keep: Part, extra_modules: Iterable[str]) -> Half:
        """Apply the job's MLP chunking and group windows, after checking that the half computes the
        attention that is part of its cache key. Extra modules of the other half may use another
        implementation. Raises EnvironmentFault."""
        attention = attention_of(half)
        if self.attention not in (None, attention) and not any(extra_modules):
            raise EnvironmentFault(
                f"{self.attention} attention was requested, but the model uses {attention}",
                hint="Run the same command again after upgrading transformers, or report this",
            )
        if keep == "vision" and self.mlp_chunk:
            chunk_position_wise(half, self.mlp_chunk)
        if keep == "vision" and self.device != "cpu":
            if group_windows(half):
                keep_grids_on_host(half)
            if not (self.offload or is_switched_off()):
                half.__dict__[RECORDER] = PassRecorder()
        return half


_loaded: list[tuple[ModelJob, Part, ReloadableHalf]] = []
"""The half that this process keeps for its next stage."""
_ready: dict[tuple[Path, bool], Processor] = {}
"""Processors that `warm` loaded before their job started."""


def warm(job: JobFields) -> None:
    """Import what the half of a job needs and load its processor. Both happen before the stage's
    memory use is counted: a plan contains neither."""
    warm_source(ModelJob.of(parse_job(HalfJob, job["half"])))


def warm_source(source: ModelJob) -> None:
    import_transformers()
    folder = resolve_model(Path(source.model), source.revision)
    config, _ = config_and_class(folder, source.trust_remote_code)
    settings = stored_settings(config)
    if source.precision in KINDS or (settings is not None and not is_read_here(settings)):
        import_asking_cuda("transformers.integrations.bitsandbytes", "bitsandbytes")
    if source.backend:
        import_module("onnxruntime")
        import_module("transformers.exporters.utils")
    if source.adapter:
        import_asking_cuda("peft")
    if source.gguf:
        from stages.models.gguf import half as self_test

        self_test.check()
        import_module("stages.models.gguf.half")
    if source.offload:
        import_module("accelerate")
        import_module("greenlet")
    _ready[folder, source.trust_remote_code] = source.processor()


def stored_weights(folder: Path, skeleton: "PreTrainedModel") -> dict[str, tuple[Path, str]]:
    """Return the weights of a checkpoint whose files are local: path in the model → file, and name
    in it."""
    stored = list(_tensors(folder))
    paths = model_names(skeleton, [name for _, name in stored])
    return {path: place for path, place in zip(paths, stored, strict=True) if path is not None}


def _tensors(folder: Path) -> Iterator[tuple[Path, str]]:
    """Yield file and name of each tensor in the local files; those of the other half may be
    missing."""
    from safetensors import SafetensorError, safe_open

    for path in sorted(folder.glob("*.safetensors")):
        # The loader reports a damaged file.
        with (
            contextlib.suppress(SafetensorError),
            # Not mapped: a writable mapping counts against a memory limit in full.
            safe_open(path, "pt", backend="pread") as file,
        ):
            yield from ((path, name) for name in file.keys())  # noqa: SIM118


def facts(half: Half) -> dict[str, Json]:
    """Return facts about a loaded half for the run's record."""
    quantized = count(half)
    plain = sum(
        type(module) is torch.nn.Linear and ".lora_" not in path
        for path, module in half.named_modules()
    )
    return {
        "attention": attention_of(half),
        "dtype": str(half.dtype),
        "quantized_modules": dict(quantized),
        "linear_modules": plain + quantized.total(),
        "load_seconds": half.__dict__.get(LOAD_SECONDS, 0.0),
        **({"adapted_modules": modules} if (modules := adapted_modules(half)) else {}),
        **({"unpinned": why} if (why := half.__dict__.get(NOTE)) else {}),
        **({"stored_weights": form} if (form := half.__dict__.get(FORM)) else {}),
        "bytes_fetched_a_pass": offloaded_bytes(half),
    }


@contextlib.contextmanager
def _attention_errors(name: str | None) -> Iterator[None]:
    """Turn the loader's error about an unavailable attention implementation into one line."""
    try:
        yield
    except (ImportError, ValueError) as error:
        if name is None or "ttention" not in str(error):
            raise
        raise EnvironmentFault(
            f"{name} attention cannot be used ({one_line(error)})",
            hint="Reinstall flash-attn for this version of torch, or remove it to use SDPA",
        ) from error
