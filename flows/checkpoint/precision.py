"""Resolves the precision of each half from the options, the checkpoint and the machine. Imports no
model library.
"""

import contextlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from types import MappingProxyType

from artifacts.errors import UsageError
from artifacts.schema import Part
from flows.checkpoint.adapters import AdapterUse
from flows.checkpoint.graphs import GraphUse
from flows.machine.cpu import cpu_has_bfloat16
from flows.options.commands import RunOptions
from flows.options.model import HalfPrecisionOptions
from flows.options.text import EngineOptions
from stages.decode.engines import EngineSpec, accepted_by, engines_for
from stages.models.natives.registry import no_published_difference
from stages.models.profile import ModelProfile, PartProfile
from stages.process.device import device_capability

FLASH = "flash_attention_2"
FLASH_CAPABILITY = (8, 0)
"""Compute capability of the oldest GPUs that FlashAttention 2 runs on (Ampere)."""


def attention(half: PartProfile, dtype: str, device: str) -> str:
    """Return the attention of a half: FlashAttention 2 where all it needs is there. Else it is what
    the model takes by itself."""
    fits = half.flash and dtype in ("bfloat16", "float16") and device.startswith("cuda")
    if fits and flash_installed() and device_capability(device) >= FLASH_CAPABILITY:
        return FLASH
    return half.attention


def flash_installed() -> bool:
    """Return whether the package is there, in a version that transformers takes."""
    try:
        numbers = version("flash-attn").split("+")[0].split(".")[:3]
        return [int(number) for number in numbers] >= [2, 3, 3]
    except (PackageNotFoundError, ValueError):
        return False


QUANTIZED = ("int8", "nf4")
"""Precisions to which layers are quantized while they are loaded."""


def check_obtainable(name: str, half: PartProfile, profile: ModelProfile, asked: str) -> None:
    """Refuse a precision in which a half cannot be had. A half saved in 4 or 8 bit is as it is; one
    that lies beside it can be cast but not quantized. Raises UsageError."""
    hint = f"Give --{name}-precision native, or the checkpoint it was made from"
    if half.stored_as and asked not in ("native", half.stored_as):
        raise UsageError(
            f"the {name} half of {profile.folder} was saved in {half.stored_as}, "
            f"which cannot be turned into {asked}",
            hint=hint,
        )
    stored = profile.vision.stored_as or profile.language.stored_as
    if stored and not half.stored_as and asked in QUANTIZED:
        raise UsageError(
            f"the {name} half of {profile.folder} was saved unquantized beside one in {stored}, "
            f"and cannot be had in {asked}",
            hint=hint,
        )
    if asked in QUANTIZED and not half.linear_modules:
        raise UsageError(
            f"no layer of the {name} half of {profile.folder} can be told to be one that {asked} "
            "takes",
            hint=f"Give --{name}-precision bf16",
        )


SHORT = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}
DTYPES = {short: name for name, short in SHORT.items()}
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
BFLOAT16_CAPABILITY = (8, 0)
"""That of the oldest GPUs that compute in bfloat16. On older ones torch does it in 32 bit: slowly,
and without a fused attention."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PartSettings:
    """The settings that one half is loaded and run with. Every field is part of the cache key."""

    precision: str
    """`fp32`, `bf16`, `fp16`, `int8`, `nf4`; `fp4` of a checkpoint that was saved so."""
    dtype: str
    """Name of the torch dtype that it computes in."""
    attention: str
    """Attention implementation; several, of several parts, are joined by `+`."""
    weight_bytes: int
    """Bytes of its weights in that precision, without what computing takes."""
    kv: str = ""
    """`quantized` when the KV cache is kept in few bits, which changes words."""
    as_published: bool = False
    """Whether it is computed as published where that is otherwise."""
    engine: str = ""
    """Choice of what makes the captions; empty of a part that makes none."""
    graph: GraphUse | None = None
    """Graphs that compute it; None: torch does."""
    adapter: AdapterUse | None = None
    """What is added to its layers; None: nothing."""

    @property
    def choice(self) -> tuple[EngineSpec, ...]:
        """Return the engines that may make its captions, the best first; none of a part that makes
        none."""
        return engines_for(self.engine) if self.engine else ()

    @property
    def engines(self) -> tuple[str, ...]:
        """Return the names of the same, and of those whose captions answer, too; one empty name of
        a part that makes none."""
        return tuple(e.name for e in accepted_by(self.engine)) if self.engine else ("",)

    @property
    def decides(self) -> list[str | int]:
        """Return the settings that belong into a key, those of the first engine among them."""
        words = self.choice[0].words if self.choice else ()
        graph = self.graph.digest if self.graph else ""
        adapter = f"adapter {self.adapter.digest}" if self.adapter else ""
        more = filter(None, [self.kv, "as published" * self.as_published, graph, adapter])
        return [self.precision, self.dtype, self.attention, *more, *words]

    @property
    def label(self) -> str:
        """Return the precision as a caption states it."""
        more = [" with a quantized KV cache" * bool(self.kv), " as published" * self.as_published]
        adapter = f" with {self.adapter.label}" if self.adapter else ""
        return "".join([self.precision, *more, adapter])


def resolve_settings(
    config: RunOptions,
    profile: ModelProfile,
    device: str,
    graphs: Mapping[Part, GraphUse] | None = None,
    *,
    named: Mapping[Part, str] = MappingProxyType({}),
) -> dict[Part, tuple[PartSettings, ...]]:
    """Return all settings that each part may be run in, the best first. There is more than one
    where `auto` was asked for; a part that `graphs` compute is run in no other way. `named` are
    precisions of parts in place of those of the options. Raises UsageError for what the
    checkpoint cannot be had in."""
    if graphs:
        parts = resolve_settings(config, profile, device, named={"vision": "native"})
        return {
            **parts,
            **{p: (_by_graphs(parts[p][0], use, profile.parts[p]),) for p, use in graphs.items()},
        }
    if config.as_published and not any(part.as_published for part in profile.parts.values()):
        raise no_published_difference(config.model)
    language = _settings(config, profile, "language", device, named)
    if profile.route != "joint":
        return {
            part: language
            if part == "language"
            else _settings(config, profile, part, device, named)
            for part in profile.parts
        }
    # The one stage that loads anything loads all of it.
    dtype = language[0].dtype
    check_joint(config, profile, dtype)
    seen = replace(language[0], precision=SHORT.get(dtype, dtype), weight_bytes=0, engine="")
    return {"vision": (seen,), "language": language}


def with_adapter(
    settings: Mapping[Part, tuple[PartSettings, ...]], adapter: AdapterUse
) -> dict[Part, tuple[PartSettings, ...]]:
    """Return the settings of a model that captions, with an adapter in its language half."""
    language = tuple(replace(each, adapter=adapter) for each in settings["language"])
    return {**settings, "language": language}


def _by_graphs(settings: PartSettings, graph: GraphUse, half: PartProfile) -> PartSettings:
    """Return the settings of a half whose towers graphs compute; the rest is torch's."""
    rest = max(0, half.parameters - graph.parameters) * BYTES.get(settings.dtype, 4)
    return replace(
        settings,
        precision=graph.label,
        attention=graph.provider,
        weight_bytes=graph.bytes + rest,
        graph=graph,
    )


def _settings(
    config: RunOptions, profile: ModelProfile, part: Part, device: str, named: Mapping[Part, str]
) -> tuple[PartSettings, ...]:
    half, asked = profile.parts[part], named.get(part) or config.precision_of(part)
    # Quantized features are a loss that every caption inherits: only who names the vision half gets
    # them. Vectors are all that a dual encoder makes, so whoever asks means them.
    captioned = part != "language" and profile.route != "dual"
    lossy = asked in QUANTIZED and captioned and not config.names(part)
    first = "native" if lossy else _first(asked)
    check_obtainable(part, half, profile, first)
    best = _half(part, profile, first, device, config)
    if asked != "auto" or half.stored_as:
        return (best,)
    kv = [replace(best, kv="quantized", engine=each.name) for each in best.choice if each.kv]
    few_bits = _quantized(part, half, profile)
    if best.choice:
        few_bits = [q for q in few_bits if any(q not in e.refused_precisions for e in best.choice)]
    return (best, *kv[:1], *(_half(part, profile, q, device, config) for q in few_bits))


def _quantized(name: str, half: PartProfile, profile: ModelProfile) -> list[str]:
    with contextlib.suppress(UsageError):
        check_obtainable(name, half, profile, QUANTIZED[0])
        return list(QUANTIZED)
    return []


def _first(asked: str) -> str:
    return "native" if asked == "auto" else asked


def _half(
    part: Part, profile: ModelProfile, asked: str, device: str, config: RunOptions
) -> PartSettings:
    half = profile.parts[part]
    dtype = DTYPES.get(asked) or native_dtype(profile.dtype, device)
    precision = half.stored_as or (asked if asked in QUANTIZED else SHORT.get(dtype, dtype))
    return PartSettings(
        precision=precision,
        dtype=dtype,
        attention=attention(half, dtype, device),
        weight_bytes=weight_bytes(half, precision, dtype),
        as_published=profile.as_published and bool(half.as_published),
        engine=EngineOptions.of(config).speakers
        if part == "language" and profile.route != "dual"
        else "",
    )


def check_joint(config: RunOptions, profile: ModelProfile, dtype: str) -> None:
    """Refuse to let a model that is run whole see otherwise than it reads. Raises UsageError."""
    asked = _first(HalfPrecisionOptions.of(config).vision_precision or "native")
    if asked != "native" and DTYPES.get(asked) != dtype:
        raise UsageError(
            f"{profile.class_name} is run whole, so --vision-precision {asked} cannot be had "
            f"beside {dtype}",
            hint="Give --precision alone",
        )


def weight_bytes(half: PartProfile, precision: str, dtype: str) -> int:
    """Return the bytes of a half's weights on the device. Of a quantized layer these are the
    weights and their scales, one a row in 8 bit, one a block of 64 in 4 bit, which are 8 bit
    themselves."""
    if half.stored_as:
        return half.stored_bytes
    each = BYTES.get(dtype, 4)
    if precision not in QUANTIZED:
        return half.parameters * each
    weights = half.linear_parameters
    scales = 4 * half.linear_rows if precision == "int8" else weights // 64 + weights // 4096
    packed = weights if precision == "int8" else weights // 2
    return (half.parameters - weights) * each + packed + scales


def native_dtype(stated: str, device: str) -> str:
    """Return the checkpoint's own dtype, or one that the device has arithmetic for. That is float16
    on a GPU and 32 bit on a CPU."""
    if device != "cpu":
        return "float16" if stated == "bfloat16" and no_bfloat16(device) else stated
    if stated == "float32":
        return stated
    return "bfloat16" if stated == "bfloat16" and cpu_has_bfloat16() else "float32"


def no_bfloat16(device: str) -> bool:
    """Return whether a GPU is known to be too old for bfloat16."""
    return (0, 0) < device_capability(device) < BFLOAT16_CAPABILITY


def precision_note(profile: ModelProfile, halves: Iterable[PartSettings], device: str) -> str:
    """Return a note on the precision of a GPU without bfloat16; empty for others."""
    if not no_bfloat16(device):
        return ""
    dtypes = {half.dtype for half in halves}
    gpu = "a GPU of compute capability {}.{}".format(*device_capability(device))
    if "bfloat16" in dtypes:
        return (
            f"{gpu} has no arithmetic for bf16: it is slow, and attention takes memory with the "
            "square of the tokens; --precision fp16 does not"
        )
    if profile.dtype == "bfloat16" and "float16" in dtypes:
        return (
            f"the checkpoint is in bf16, for which {gpu} has no arithmetic: fp16 is used; if "
            "captions are empty or senseless, the model needs more range: --precision fp32"
        )
    return ""
