"""Chooses the modules to quantize, configures the loader, and checks its result. Loads nothing
itself.

Only linear layers are quantized. The output head is not, tied or not, nor are modules that the
model requires in 32 bit. By default bitsandbytes skips the last module of the model, which differs
between a half and the whole. So it gets an explicit list, made from the skeleton of the whole.
"""

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from artifacts.errors import EnvironmentFault, UsageError
from artifacts.schema import Part
from stages.models.halves.absent import MissingModule
from stages.models.halves.boundary import absent_paths, within

KINDS = ("int8", "nf4")
"""Kinds that a checkpoint can be quantized to while it is loaded."""
PIXEL_LAYERS = (nn.Conv2d, nn.Conv3d)
PACKED_ROWS = 32
"""Rows that that kernel takes at once."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Quantization:
    """The modules of one half that the loader quantizes, or finds quantized."""

    kind: str
    """`int8`, `nf4`, `fp4`; empty: nothing."""
    modules: frozenset[str]
    """Paths of the modules, in the names of the whole model."""
    options: dict[str, Any]
    """Options for `load_half`."""


def plan(
    skeleton: Any,
    keep: Part,
    precision: str,
    dtype: torch.dtype,
    stored: Mapping[str, str] | None = None,
) -> Quantization:
    """Plan how one half of the model over `skeleton` comes to `precision`. Its quantized layers
    compute in `dtype`. `stored` says what is quantized already, in those of the checkpoint's files
    that are here. Raises UsageError for what cannot be had."""
    if stored or precision in KINDS:
        check_stored(skeleton.config, set((stored or {}).values()))
    if stored_settings(skeleton.config) is not None:
        return _as_stored(skeleton, precision, dtype, stored or {})
    if precision not in KINDS:
        return Quantization(kind="", modules=frozenset(), options={})
    modules = quantizable(skeleton, keep)
    if not modules:
        raise UsageError(
            f"{type(skeleton).__name__} has no layer in its {keep} half that {precision} takes",
            hint="Ask for native, bf16 or fp16",
        )
    spared = [path for path in linears_of(skeleton) if path not in modules]
    return Quantization(
        kind=precision,
        modules=frozenset(modules),
        options={"quantization_config": settings_of(precision, dtype, spared)},
    )


def quantizable(skeleton: Any, keep: Part) -> dict[str, Any]:
    """Return path → module of what is quantized in one half when that is asked for. In a model that
    is run whole, that is what is so in its decoder."""
    converted = _converted(skeleton, _spared(skeleton))
    if keep == "whole":
        decoder = _blind_decoder(skeleton)
        return {path: m for path, m in converted.items() if decoder and within(path, decoder)}
    absent = absent_paths(skeleton, keep)
    return {path: m for path, m in converted.items() if not any(within(path, a) for a in absent)}


def _blind_decoder(skeleton: Any) -> str | None:
    """Return the path of a decoder that sees no pixels; None when there is no such part."""
    decoder = skeleton.get_decoder()
    sees = decoder is None or any(isinstance(m, PIXEL_LAYERS) for m in decoder.modules())
    return None if sees else next(p for p, m in skeleton.named_modules() if m is decoder)


def stored_settings(config: Any) -> dict[str, Any] | None:
    """Return how a checkpoint that was saved quantized says it was; None for others."""
    found = getattr(config, "quantization_config", None)
    if found is None:
        found = getattr(config.get_text_config(decoder=True), "quantization_config", None)
    return found if found is None or isinstance(found, dict) else dict(found.to_dict())


def check_stored(config: Any, kinds: Collection[str], *, plain: bool = False) -> None:
    """Refuse a checkpoint that was quantized by another method than that of bitsandbytes. So too
    one that says other things of itself than its weights do, which may be known to be `plain`.
    Raises UsageError."""
    settings = stored_settings(config) or {}
    method = settings.get("quant_method", "")
    if plain and method not in ("", "bitsandbytes"):
        raise UsageError(
            f"config.json says that the checkpoint is quantized by {method}, and its weights are "
            "plain",
            hint="Take quantization_config out of its config.json: then it is run as it is, or "
            "with --precision nf4",
        )
    if method not in ("", "bitsandbytes"):
        raise UsageError(
            f"the checkpoint is quantized by {method}, of which halves cannot be loaded",
            hint="Take the checkpoint it was made from, with --precision int8 or nf4, or what "
            "`penstock export --to nf4` makes of that",
        )
    if bool(settings) != bool(kinds) or len(kinds) > 1:
        is_in = " and ".join(sorted(kinds)) or "not quantized"
        raise UsageError(
            f"the weights are {is_in}, and config.json says {settings or 'nothing'} of it"[:200],
            hint="Download the checkpoint again: its files are of different versions",
        )


def check(half: Any, planned: Quantization) -> None:
    """Check that the modules are quantized that were planned. Raises EnvironmentFault when others
    are."""
    for path, module in half.named_modules():
        if type(module) is nn.Linear and not module.weight.dtype.is_floating_point:
            raise EnvironmentFault(
                f"the weight of {path} is in few bits, and its scales are not in the checkpoint",
                hint="Download, or export, the checkpoint again",
            )
    absent = [path for path, module in half.named_modules() if isinstance(module, MissingModule)]
    here = [path for path in planned.modules if not any(within(path, a) for a in absent)]
    found = count(half)
    expected = Counter({planned.kind: len(here)}) if planned.kind else Counter[str]()
    if found == expected:
        return
    got = ", ".join(f"{number} in {kind}" for kind, number in sorted(found.items())) or "none"
    raise EnvironmentFault(
        f"asked for {len(here)} modules in {planned.kind or 'no quantization'} and got {got}",
        hint="Check that config.json and the weights are of one checkpoint, or leave out "
        "--precision; if they are, this is a fault of Penstock: please report it",
    )


def count(half: Any) -> Counter[str]:
    """Return `int8`, `nf4` or `fp4` → how many modules of a loaded model hold such weights. That is
    told by their scales and not by the modules' class."""
    found = Counter[str]()
    for module in half.modules():
        name, weight = type(module).__name__, module._parameters.get("weight")
        state = getattr(weight, "quant_state", None)
        if name == "Linear8bitLt" and weight is not None and weight.dtype == torch.int8:
            found["int8"] += 1
        elif name == "Linear4bit" and state is not None:
            found[state.quant_type] += 1
    return found


def keep_to_dtype(half: Any) -> None:
    """Keep bitsandbytes from its kernel for CPUs with AVX512-BF16, for layers it does not suit.
    Such a layer computes in another dtype, which that kernel passes over, or has a shape that it
    fails at."""
    for module in half.modules():
        if type(module).__name__ == "Linear4bit":
            state = getattr(module.weight, "quant_state", None)
            rows, columns = module.out_features, module.in_features
            fits = state is not None and columns % state.blocksize == 0 and rows % PACKED_ROWS == 0
            if not fits or module.compute_dtype != torch.bfloat16:
                module.support_avx512bf16_for_cpu = False


def _as_stored(
    skeleton: Any, precision: str, dtype: torch.dtype, stored: Mapping[str, str]
) -> Quantization:
    """Plan by the weights alone; settings may name modules in a way that the loader passes over."""
    kind = next(iter(stored.values()), "")  # the files of a half that is not quantized may be alone
    if precision in KINDS and precision != kind:
        raise UsageError(
            f"the checkpoint was saved in {kind} and cannot be had in {precision}",
            hint="Leave --precision out, or take the checkpoint it was made from",
        )
    spared = _exactly(path for path in linears_of(skeleton) if path not in stored)
    settings = {**(stored_settings(skeleton.config) or {}), "llm_int8_skip_modules": spared}
    if kind != "int8":
        settings["bnb_4bit_compute_dtype"] = str(dtype).removeprefix("torch.")
    return Quantization(
        kind=kind, modules=frozenset(stored), options={"stored_quantization": settings}
    )


def settings_of(kind: str, dtype: torch.dtype, spared: Iterable[str]) -> Any:
    """Return the loader's settings to quantize all linear modules but those at `spared`."""
    from transformers import BitsAndBytesConfig

    skip = _exactly(spared)
    if kind == "int8":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=skip)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=skip,
    )


def _exactly(paths: Iterable[str]) -> list[str]:
    """Return paths as one pattern, as the loader would take a bare name for the end of others
    too."""
    escaped = "|".join(re.escape(path) for path in paths)
    return [rf"^(?:{escaped})$"] if escaped else []


def _spared(skeleton: Any) -> list[str]:
    """Return the output head, what is tied to something, and what the model wants in 32 bit."""
    head = skeleton.get_output_embeddings()
    paths = [path for path, module in skeleton.named_modules() if module is head]
    for ends in (skeleton.all_tied_weights_keys or {}).items():
        paths += [end.rpartition(".")[0] for end in ends]
    return [*_exactly(paths), *(skeleton._keep_in_fp32_modules or ())]


def _converted(skeleton: Any, spared: list[str]) -> dict[str, Any]:
    from transformers.quantizers.quantizers_utils import should_convert_module

    linears = linears_of(skeleton).items()
    return {path: module for path, module in linears if should_convert_module(path, spared)}


def linears_of(skeleton: nn.Module) -> dict[str, Any]:
    """Return the modules that bitsandbytes has a quantized class for."""
    from transformers.pytorch_utils import Conv1D

    return {
        path: module
        for path, module in skeleton.named_modules()
        if type(module) is nn.Linear or isinstance(module, Conv1D)
    }
