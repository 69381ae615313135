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
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from artifacts.errors import EnvironmentFault, UsageError
from artifacts.schema import Part
from stages.models.halves.absent import MissingModule
from stages.models.halves.boundary import absent_paths, within
from stages.models.hub.quantized import ADVICE, is_read_here
from stages.models.protocols import Half
from stages.models.stored.layer_names import stored_settings
from stages.models.stored.packed_linear import PackedLinear

if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from transformers.pytorch_utils import Conv1D

KINDS = ("int8", "nf4")
"""Quantizations that can be applied while a checkpoint is loaded."""
PIXEL_LAYERS = (nn.Conv2d, nn.Conv3d)
PACKED_ROWS = 32
"""Rows that the AVX512-BF16 kernel processes at once."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Quantization:
    """The modules of one half that the loader quantizes, or finds quantized."""

    kind: str
    """`int8`, `nf4`, `fp4`; empty: no quantization."""
    modules: frozenset[str]
    """Paths of the modules in the whole model."""
    options: dict[str, Any]
    """Options for `load_half`."""


def plan(
    skeleton: "PreTrainedModel",
    keep: Part,
    precision: str,
    dtype: torch.dtype,
    stored: Mapping[str, str] | None = None,
) -> Quantization:
    """Plan how one half of the model over `skeleton` gets `precision`.

    Its quantized layers compute in `dtype`. `stored` lists the modules that the local files hold
    quantized already. Raises UsageError for an impossible precision."""
    if stored or precision in KINDS:
        check_stored(skeleton.config, set((stored or {}).values()))
    if stored_settings(skeleton.config) is not None:
        return _as_stored(skeleton, precision, dtype, stored or {})
    if precision not in KINDS:
        return Quantization(kind="", modules=frozenset(), options={})
    modules = quantizable(skeleton, keep)
    if not modules:
        raise UsageError(
            f"{precision} supports no layer in the {keep} half of {type(skeleton).__name__}",
            hint="Use native, bf16 or fp16",
        )
    spared = [path for path in linears_of(skeleton) if path not in modules]
    return Quantization(
        kind=precision,
        modules=frozenset(modules),
        options={"quantization_config": settings_of(precision, dtype, spared)},
    )


def quantizable(skeleton: "PreTrainedModel", keep: Part) -> "dict[str, nn.Linear | Conv1D]":
    """Return path → module of the layers that quantization of one half covers. For a model that
    runs whole, these are the layers of its decoder."""
    converted = _converted(skeleton, _spared(skeleton))
    if keep == "whole":
        decoder = _blind_decoder(skeleton)
        return {path: m for path, m in converted.items() if decoder and within(path, decoder)}
    absent = absent_paths(skeleton, keep)
    return {path: m for path, m in converted.items() if not any(within(path, a) for a in absent)}


def _blind_decoder(skeleton: "PreTrainedModel") -> str | None:
    """Return the path of a decoder that processes no pixels; None if there is none."""
    decoder = skeleton.get_decoder()
    sees = decoder is None or any(isinstance(m, PIXEL_LAYERS) for m in decoder.modules())
    return None if sees else next(p for p, m in skeleton.named_modules() if m is decoder)


def check_stored(config: Any, kinds: Collection[str], *, plain: bool = False) -> None:
    """Refuse a checkpoint whose configuration contradicts its weights. `plain`: its weights are
    known not to be quantized. Raises UsageError."""
    settings = stored_settings(config) or {}
    method = settings.get("quant_method", "")
    others = is_read_here(settings)
    if plain and others:
        raise UsageError(
            f"config.json says that the checkpoint is quantized by {method}, but its weights are "
            "not quantized",
            hint="Remove quantization_config from its config.json; then run it as it is, or with "
            "--precision nf4",
        )
    if others and not kinds:
        raise UsageError(
            f"the checkpoint is quantized by {method}, and holds no layer in a form that is read",
            hint=ADVICE,
        )
    if bool(settings) != bool(kinds) or (len(kinds) > 1 and not others):
        is_in = " and ".join(sorted(kinds)) or "not quantized"
        raise UsageError(
            f"the weights are {is_in}, but config.json says {settings or 'nothing'} about it"[:200],
            hint=ADVICE,
        )


def check(half: Half, planned: Quantization) -> None:
    """Check that exactly the planned modules are quantized. Raises EnvironmentFault if not."""
    absent = [path for path, module in half.named_modules() if isinstance(module, MissingModule)]
    modules = [path for path in planned.modules if not any(within(path, a) for a in absent)]
    counts = count(half)
    expected = Counter({planned.kind: len(modules)}) if planned.kind else Counter[str]()
    if counts == expected:
        return
    got = ", ".join(f"{number} in {kind}" for kind, number in sorted(counts.items())) or "none"
    raise EnvironmentFault(
        f"planned {len(modules)} modules in {planned.kind or 'no quantization'}, found {got}",
        hint="Check that config.json and the weights belong to one checkpoint, or leave out "
        "--precision; if they do, this is an error in Penstock: please report it",
    )


def count(half: Half) -> Counter[str]:
    """Return `int8`, `nf4`, `fp4` or another stored kind → number of modules of a loaded model with
    such weights. The weights' scales decide, not the modules' class."""
    counts = Counter[str]()
    for module in half.modules():
        name, weight = type(module).__name__, module._parameters.get("weight")
        state = getattr(weight, "quant_state", None)
        if name == "Linear8bitLt" and weight is not None and weight.dtype == torch.int8:
            counts["int8"] += 1
        elif name == "Linear4bit" and state is not None:
            counts[state.quant_type] += 1
        elif isinstance(module, PackedLinear):
            counts[module.layer.kind] += 1
    return counts


def keep_to_dtype(half: Half) -> None:
    """Keep bitsandbytes from using its AVX512-BF16 CPU kernel for layers that it does not suit.

    Such a layer computes in another dtype, which the kernel ignores, or has an unsupported
    shape."""
    module: Any
    for module in half.modules():
        if type(module).__name__ == "Linear4bit":
            state = getattr(module.weight, "quant_state", None)
            rows, columns = module.out_features, module.in_features
            fits = state is not None and columns % state.blocksize == 0 and rows % PACKED_ROWS == 0
            if not fits or module.compute_dtype != torch.bfloat16:
                module.support_avx512bf16_for_cpu = False


def _as_stored(
    skeleton: "PreTrainedModel", precision: str, dtype: torch.dtype, stored: Mapping[str, str]
) -> Quantization:
    """Plan from the weights alone: settings may name modules in a form that the loader ignores."""
    kind = next(iter(stored.values()), "")  # empty if only a half without quantization is local
    if precision in KINDS and precision != kind:
        raise UsageError(
            f"the checkpoint was saved in {kind} and cannot be converted to {precision}",
            hint="Leave --precision out, or use the checkpoint it was made from",
        )
    spared = _exactly(path for path in linears_of(skeleton) if path not in stored)
    settings = {**(stored_settings(skeleton.config) or {}), "llm_int8_skip_modules": spared}
    if kind != "int8":
        settings["bnb_4bit_compute_dtype"] = str(dtype).removeprefix("torch.")
    return Quantization(
        kind=kind, modules=frozenset(stored), options={"stored_quantization": settings}
    )


def settings_of(kind: str, dtype: torch.dtype, spared: Iterable[str]) -> Any:
    """Return the loader's settings for quantizing all linear modules except `spared`."""
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
    """Return paths as one anchored pattern: the loader would also match a bare name as the end of
    other paths."""
    escaped = "|".join(re.escape(path) for path in paths)
    return [rf"^(?:{escaped})$"] if escaped else []


def _spared(skeleton: "PreTrainedModel") -> list[str]:
    """Return the output head, tied modules, and modules that the model requires in 32 bit."""
    head = skeleton.get_output_embeddings()
    paths = [path for path, module in skeleton.named_modules() if module is head]
    for ends in (skeleton.all_tied_weights_keys or {}).items():
        paths += [end.rpartition(".")[0] for end in ends]
    return [*_exactly(paths), *(skeleton._keep_in_fp32_modules or ())]


def _converted(skeleton: "PreTrainedModel", spared: list[str]) -> "dict[str, nn.Linear | Conv1D]":
    from transformers.quantizers.quantizers_utils import should_convert_module

    linears = linears_of(skeleton).items()
    return {path: module for path, module in linears if should_convert_module(path, spared)}


def linears_of(skeleton: nn.Module) -> "dict[str, nn.Linear | Conv1D]":
    """Return the modules for which bitsandbytes has a quantized class."""
    from transformers.pytorch_utils import Conv1D

    return {
        path: module
        for path, module in skeleton.named_modules()
        if type(module) is nn.Linear or isinstance(module, Conv1D)
    }
