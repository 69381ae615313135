"""Resolves the precision of each half from the options, the checkpoint and the machine. Imports no
model library.
"""

import contextlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from artifacts.errors import UsageError
from artifacts.packages import EXTRAS, install_command, is_installed, version_of
from artifacts.schema import Part
from flows.core.checkpoint.adapters import AdapterUse
from flows.core.checkpoint.gguf import GgufUse
from flows.core.checkpoint.graphs import GraphUse
from flows.core.machine.versions import cpu_has_bfloat16
from flows.core.options.commands import RunOptions
from flows.core.options.model import QUANTIZED as QUANTIZED
from stages.decode.engines import AUTO, EngineSpec, accepted_by, engines_for, gguf_engine
from stages.models.profile import ModelProfile, PartProfile
from stages.process.device import device_capability

(QUANTIZER,) = EXTRAS["bits"].modules
"""Module that quantizes layers."""
FLASH = "flash_attention_2"
FLASH_CAPABILITY = (8, 0)
"""Compute capability of the oldest GPUs that FlashAttention 2 supports (Ampere)."""


def attention(half: PartProfile, dtype: str, device: str) -> str:
    """Return the attention implementation of a half: FlashAttention 2 if its requirements are met,
    else the model's default."""
    fits = half.flash and dtype in ("bfloat16", "float16") and device.startswith("cuda")
    if fits and flash_installed() and device_capability(device) >= FLASH_CAPABILITY:
        return FLASH
    return half.attention


def flash_installed() -> bool:
    """Return whether flash-attn is installed in a version that transformers supports."""
    try:
        numbers = version_of("flash-attn").split("+")[0].split(".")[:3]
        return [int(number) for number in numbers] >= [2, 3, 3]
    except ValueError:
        return False


def check_available(name: str, half: PartProfile, profile: ModelProfile, requested: str) -> None:
    """Check that a half can be loaded in a precision. A half saved in 4 or 8 bit keeps its
    precision. An unquantized half next to it can be cast but not quantized. Raises UsageError."""
    hint = f"Give --{name}-precision native, or the checkpoint it was made from"
    stored = profile.vision.stored_as or profile.language.stored_as
    if half.stored_as and requested not in ("native", half.stored_as):
        why = f"was saved in {half.stored_as}"
    elif stored and not half.stored_as and requested in QUANTIZED:
        why = f"was saved unquantized next to a half in {stored}"
    elif requested in QUANTIZED and not half.linear_modules:
        why = "has no linear layer that is known to be quantizable"
        hint = f"Give --{name}-precision bf16"
    else:
        return
    raise UsageError(
        f"--{name}-precision {requested}: not possible for {profile.folder} (its {name} half "
        f"{why})",
        hint=hint,
    )


SHORT = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}
DTYPES = {short: name for name, short in SHORT.items()}
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
BFLOAT16_CAPABILITY = (8, 0)
"""Compute capability of the oldest GPUs with bfloat16 arithmetic. On older ones torch computes in
32 bit, slowly and without fused attention."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PartSettings:
    """The settings that one half is loaded and run with. `key_fields` enter the cache key."""

    precision: str
    """`fp32`, `bf16`, `fp16`, `int8` or `nf4`; `fp4` for a checkpoint saved in it."""
    dtype: str
    """Name of the torch dtype for computing."""
    attention: str
    """Attention implementation; those of several modules are joined by `+`."""
    weight_bytes: int
    """Bytes of its weights in this precision, without activations."""
    kv: str = ""
    """`quantized` if the KV cache is quantized, which changes the text."""
    as_published: bool = False
    """Whether it runs as published, where this makes a difference."""
    engine: str = ""
    """Choice of engines for captions; empty for a part that makes none."""
    graph: GraphUse | None = None
    """Graphs that compute it; None: torch does."""
    gguf: GgufUse | None = None
    """GGUF file that runs its decoder in llama.cpp; None: torch does."""
    cast: bool = False
    """Whether the checkpoint has quantized weights, and others in 16 bit that are cast to another
    dtype when they are loaded."""
    adapter: AdapterUse | None = None
    """Adapter added to its layers; None: no adapter."""
    features_as: str = ""
    """Form in which its features are stored, which their namespace names; empty: as computed."""

    @property
    def choice(self) -> tuple[EngineSpec, ...]:
        """Return the engines that may make its captions, best first; empty for a part that makes
        none."""
        return engines_for(self.engine) if self.engine else ()

    def may_run(self, engine: str) -> bool:
        """Return whether an engine of `engines` may make captions here, or is accepted alone."""
        return not engine or any(engine == spec.name for spec in self.choice)

    @property
    def engines(self) -> tuple[str, ...]:
        """Return the names of these engines and of engines with equivalent captions. A part without
        captions has one empty name."""
        return tuple(e.name for e in accepted_by(self.engine)) if self.engine else ("",)

    @property
    def key_fields(self) -> list[str | int]:
        """Return the settings that enter the cache key, those of the first engine among them."""
        engine_fields = self.choice[0].key_fields if self.choice else ()
        graph = self.graph.digest if self.graph else ""
        adapter = f"adapter {self.adapter.digest}" if self.adapter else ""
        gguf = self.gguf.key_fields if self.gguf else ()
        published = "as published" * self.as_published
        more = filter(None, [self.kv, published, graph, *gguf, adapter])
        return [self.precision, self.dtype, self.attention, *more, *engine_fields]

    @property
    def label(self) -> str:
        """Return the precision as captions state it."""
        more = [" with a quantized KV cache" * bool(self.kv), " as published" * self.as_published]
        adapter = f" with {self.adapter.label}" if self.adapter else ""
        form = f" as {self.features_as}" if self.features_as else ""
        return "".join([self.precision, *more, adapter, form])


def resolve_settings(
    config: RunOptions,
    profile: ModelProfile,
    device: str,
    graphs: Mapping[Part, GraphUse] | None = None,
    *,
    overrides: Mapping[Part, str] = MappingProxyType({}),
) -> dict[Part, tuple[PartSettings, ...]]:
    """Return the settings that each part may run with, best first. Only `auto` gives more than one.
    A part computed by `graphs` has exactly one. `overrides` replaces the precisions of the options.
    Raises UsageError for a precision that the checkpoint does not support."""
    if graphs:
        parts = resolve_settings(config, profile, device, overrides={"vision": "native"})
        return {
            **parts,
            **{p: (_with_graphs(parts[p][0], use, profile.parts[p]),) for p, use in graphs.items()},
        }
    language = _settings_of_part(config, profile, "language", device, overrides)
    if profile.route != "joint":
        return {
            part: language
            if part == "language"
            else _settings_of_part(config, profile, part, device, overrides)
            for part in profile.parts
        }
    # A joint model has one stage with weights, which loads all of them.
    dtype = language[0].dtype
    requested = _first_precision(config.groups.halves.vision_precision or "native")
    if form := config.groups.feature_form.features_as:
        raise UsageError(
            f"--features-as {form}: not possible for {profile.class_name} (it cannot be split, and "
            "what is stored is its pixels)",
            hint="Leave it out",
        )
    if requested != "native" and DTYPES.get(requested) != dtype:
        raise UsageError(
            f"--vision-precision {requested}: not possible for {profile.class_name} (it cannot be "
            f"split, and its language half runs in {dtype})",
            hint="Give --precision alone",
        )
    seen = replace(language[0], precision=SHORT.get(dtype, dtype), weight_bytes=0, engine="")
    return {"vision": (seen,), "language": language}


def with_adapter(
    settings: Mapping[Part, tuple[PartSettings, ...]], adapter: AdapterUse
) -> dict[Part, tuple[PartSettings, ...]]:
    language = tuple(replace(s, adapter=adapter) for s in settings["language"])
    return {**settings, "language": language}


def with_gguf(config: RunOptions, settings: PartSettings, use: GgufUse) -> PartSettings:
    """Return the settings of a language half that llama.cpp runs. What is left of it computes in 32
    bit. Raises UsageError for a precision that the file does not have."""
    requested = config.precision_of("language")
    if requested not in ("auto", "native"):
        raise UsageError(
            f"--language-precision {requested}: the language half of {config.model} is a GGUF file "
            f"({use.kind})",
            hint="Leave it out, or give another file",
        )
    item_bytes = BYTES.get(settings.dtype, 4)
    return replace(
        settings,
        precision=use.kind,
        dtype="float32",
        weight_bytes=max(0, settings.weight_bytes - use.replaced * item_bytes) + use.bytes,
        engine=gguf_engine(AUTO),
        gguf=use,
    )


def _with_graphs(settings: PartSettings, graph: GraphUse, half: PartProfile) -> PartSettings:
    """Return the settings of a half whose encoders are computed by graphs; torch computes the
    rest."""
    rest = max(0, half.parameters - graph.parameters) * BYTES.get(settings.dtype, 4)
    return replace(
        settings,
        precision=graph.label,
        attention=graph.provider,
        weight_bytes=graph.bytes + rest,
        graph=graph,
    )


def _settings_of_part(
    config: RunOptions,
    profile: ModelProfile,
    part: Part,
    device: str,
    overrides: Mapping[Part, str],
) -> tuple[PartSettings, ...]:
    half, requested = profile.parts[part], overrides.get(part) or config.precision_of(part)
    # Quantized features degrade every caption, so the vision half is quantized only if its
    # precision is named. A dual encoder makes nothing but vectors, so any precision given applies
    # to them.
    captioned = part != "language" and profile.route != "dual"
    is_lossy = requested in QUANTIZED and captioned and not config.own_precision(part)
    precision = "native" if is_lossy else _first_precision(requested)
    check_available(part, half, profile, precision)
    best = _part_settings(part, profile, precision, device, config)
    if requested != "auto" or half.stored_as:
        return (best,)
    kv = [replace(best, kv="quantized", engine=engine.name) for engine in best.choice if engine.kv]
    quantized = _quantized(part, half, profile)
    if best.choice:
        quantized = [
            q for q in quantized if any(q not in e.refused_precisions for e in best.choice)
        ]
    return (best, *kv[:1], *(_part_settings(part, profile, q, device, config) for q in quantized))


def _quantized(name: str, half: PartProfile, profile: ModelProfile) -> list[str]:
    """Return the precisions to which `auto` may quantize a half."""
    if not is_installed(QUANTIZER):
        return []
    with contextlib.suppress(UsageError):
        check_available(name, half, profile, QUANTIZED[0])
        return list(QUANTIZED)
    return []


def unplanned_note(config: RunOptions, profile: ModelProfile) -> str:
    """Return a note that `auto` plans no quantized precision for lack of a package, and which extra
    brings it; empty if it is installed, or no half has `auto`."""
    halves = [profile.parts[part] for part in profile.parts if config.may_fall_back(part)]
    if is_installed(QUANTIZER) or all(half.stored_as for half in halves):
        return ""
    return (
        f"--precision auto plans no {' or '.join(QUANTIZED)}, because {QUANTIZER} is not "
        f"installed: {install_command('bits')}"
    )


def _first_precision(requested: str) -> str:
    return "native" if requested == "auto" else requested


def _part_settings(
    part: Part, profile: ModelProfile, requested: str, device: str, config: RunOptions
) -> PartSettings:
    half = profile.parts[part]
    dtype = DTYPES.get(requested) or native_dtype(profile.dtype, device)
    precision = half.stored_as or (requested if requested in QUANTIZED else SHORT.get(dtype, dtype))
    # The loader treats both halves of such a checkpoint alike, also one without quantized layers.
    quantized = any(part_profile.loader_unpacks for part_profile in profile.parts.values())
    cast = quantized and dtype != profile.dtype and BYTES.get(profile.dtype) == 2
    return PartSettings(
        precision=precision,
        dtype=dtype,
        attention=attention(half, dtype, device),
        weight_bytes=weight_bytes(half, precision, dtype, cast=cast),
        cast=cast,
        as_published=profile.as_published and bool(half.as_published),
        engine=config.engines if part == "language" and profile.route != "dual" else "",
        features_as="" if part == "language" else config.groups.feature_form.features_as,
    )


def weight_bytes(
    half: PartProfile, precision: str, dtype: str, *, cast: bool = False, packed: bool = False
) -> int:
    """Return the bytes of a half's weights on the device. A quantized layer has weights and scales:
    one scale per row in 8 bit, one per block of 64 in 4 bit, which take 8 bit themselves. `cast`:
    the weights beside layers stored by bitsandbytes are cast from 16 bit. `packed`: layers stored
    by other programs stay packed; else they are dequantized."""
    element_bytes = BYTES.get(dtype, 4)
    if packed:
        return half.packed_bytes + (half.parameters - half.packed_parameters) * element_bytes
    if half.loader_unpacks:
        others = half.parameters - half.linear_parameters
        return half.stored_bytes + cast * others * (element_bytes - 2)
    if precision not in QUANTIZED:
        return half.parameters * element_bytes
    weights = half.linear_parameters
    scales = 4 * half.linear_rows if precision == "int8" else weights // 64 + weights // 4096
    codes = weights if precision == "int8" else weights // 2
    return (half.parameters - weights) * element_bytes + codes + scales


def native_dtype(stated: str, device: str) -> str:
    """Return the checkpoint's dtype if the device supports it. Otherwise return float16 on a GPU
    and float32 on a CPU."""
    if device != "cpu":
        return "float16" if stated == "bfloat16" and no_bfloat16(device) else stated
    if stated == "float32":
        return stated
    return "bfloat16" if stated == "bfloat16" and cpu_has_bfloat16() else "float32"


def no_bfloat16(device: str) -> bool:
    """Return whether a GPU is known to be too old for bfloat16."""
    return (0, 0) < device_capability(device) < BFLOAT16_CAPABILITY


def precision_note(profile: ModelProfile, halves: Iterable[PartSettings], device: str) -> str:
    """Return a note on precision for a GPU without bfloat16, or an empty string."""
    if not no_bfloat16(device):
        return ""
    dtypes = {half.dtype for half in halves}
    gpu = "a GPU of compute capability {}.{}".format(*device_capability(device))
    if "bfloat16" in dtypes:
        return (
            f"{gpu} does not support bf16: it is slow, and attention memory grows with the square "
            "of the tokens; --precision fp16 avoids both"
        )
    if profile.dtype == "bfloat16" and "float16" in dtypes:
        return (
            f"the checkpoint is in bf16, which {gpu} does not support: fp16 is used; if captions "
            "are empty or make no sense, the model needs more range: --precision fp32"
        )
    return ""
