"""Refuses checkpoints in a quantized form that is not read, by config.json alone. Imports no model
library."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from artifacts.disk.json_shapes import Json
from artifacts.errors import UsageError
from artifacts.packages import require_extra
from stages.models.hub.checkpoint import read_config

Settings = Mapping[str, Any]
READ = "AWQ (gemm), GPTQ in 2, 4 or 8 bit, compressed-tensors, or FP8"
ADVICE = f"Use the original with --precision nf4, or the model in one of: {READ}"
METHODS = ("bitsandbytes", "awq", "gptq", "compressed-tensors", "fp8", "fbgemm_fp8")
"""Values of `quant_method` that are read."""
COMPRESSED = (
    *("dense", "pack-quantized", "int-quantized", "float-quantized", "naive-quantized"),
    *("nvfp4-pack-quantized", "mxfp4-pack-quantized", "mixed-precision"),
)
"""Values of `format` that compressed-tensors writes and that are read."""


def _value(settings: Settings, *names: str) -> str:
    """Return the first of these settings that is stated, in small letters."""
    stated = next((settings[n] for n in names if settings.get(n) not in (None, "")), "")
    return str(stated).lower()


def _groups(settings: Settings) -> list[Settings]:
    """Return the settings of each group of layers."""
    groups = settings.get("config_groups")
    every = groups.values() if isinstance(groups, Mapping) else ()
    return [group for group in every if isinstance(group, Mapping)]


def _formats(settings: Settings) -> Iterator[str]:
    yield from (str(group.get("format") or "dense") for group in (settings, *_groups(settings)))


def _is_sparse(settings: Settings) -> bool:
    sparsity = settings.get("sparsity_config")
    stated = sparsity.get("format", "dense") if isinstance(sparsity, Mapping) else "dense"
    formats = [str(stated), *_formats(settings)]
    return any("24" in form or "sparse" in form for form in formats)


def _is_mlx(settings: Any) -> bool:
    """Return whether these are settings as MLX states them, of its own layout of codes."""
    return isinstance(settings, Mapping) and {"group_size", "bits"} <= settings.keys()


def _gptq_form(settings: Settings) -> str:
    if settings.get("is_marlin_format"):
        return "marlin"
    return _value(settings, "checkpoint_format", "format") or "gptq"


UNREAD: Mapping[str, Callable[[str, Settings], bool]] = {
    "by ModelOpt": lambda method, s: method == "modelopt" or (not method and "producer" in s),
    "by MLX": lambda method, s: not method and _is_mlx(s),
    "with experts in MXFP4": lambda method, _: method == "mxfp4",
    "by torchao": lambda method, _: method == "torchao",
    "by HQQ": lambda method, _: method == "hqq",
    "by AWQ in another form than gemm (gemv, gemv_fast, marlin, llm-awq)": lambda method, s: (
        method == "awq" and _value(s, "version") not in ("", "gemm")
    ),
    "by AWQ in another number of bits than 4": lambda method, s: (
        method == "awq" and _value(s, "bits", "w_bit") not in ("", "4")
    ),
    "by GPTQ in another number of bits than 2, 4 or 8": lambda method, s: (
        method == "gptq" and _value(s, "bits") not in ("", "2", "4", "8")
    ),
    "by GPTQ for one kernel (marlin, bitblas, planar)": lambda method, s: (
        method == "gptq" and _gptq_form(s) not in ("gptq", "gptq_v2")
    ),
    "in 2:4 sparse form": lambda method, s: method == "compressed-tensors" and _is_sparse(s),
    "with rotations applied at run time (transform_config)": lambda method, s: (
        method == "compressed-tensors" and bool(s.get("transform_config"))
    ),
    "by compressed-tensors in another format than those of weights": lambda method, s: (
        method == "compressed-tensors" and not {*_formats(s)} <= {*COMPRESSED}
    ),
    "by a method that is not known here": lambda method, _: method not in METHODS,
}
"""Form that is not read, after "stored" → function that returns whether a method and its settings
are of this form. The first that fits is named."""


def settings_in(config: Mapping[str, Json]) -> Settings | None:
    """Return the quantization settings of a config.json, or of its text model; None for others."""
    parts = [config, *(value for value in config.values() if isinstance(value, Mapping))]
    stated = [part.get("quantization_config") for part in parts]
    stated += [own for part in parts if _is_mlx(own := part.get("quantization"))]
    return next(
        (settings for settings in stated if isinstance(settings, Mapping) and settings), None
    )


def is_read_here(settings: Settings | None) -> bool:
    """Return whether the settings are of another method than the loader's."""
    return (settings or {}).get("quant_method", "") not in ("", "bitsandbytes")


def refuse_unread(name: str, folder: Path) -> None:
    """Refuse a checkpoint called `name` that its config.json in `folder` says to be quantized in a
    form that is not read, or for which a package is missing. Raises UsageError."""
    config = read_config(folder)
    stated = config.get("quantization_config")
    if stated is not None and not isinstance(stated, Mapping):
        raise UsageError(
            f"quantization_config of {folder}/config.json is {str(stated)[:40]}, not an object",
            hint="Download the checkpoint again, or remove it if the weights are in 16 bit",
        )
    settings = settings_in(config)
    if settings is None:
        return
    method = _value(settings, "quant_method")
    if not method and ("load_in_8bit" in settings or "load_in_4bit" in settings):
        method = "bitsandbytes"  # before it wrote its name
    if method == "bitsandbytes":
        require_extra("bits", f"{name}, which bitsandbytes saved,")
    form = next((form for form, fits in UNREAD.items() if fits(method, settings)), "")
    if form:
        formats = ", ".join(sorted({*_formats(settings)} - {*COMPRESSED}))
        names = {"by a method": method, "by compressed-tensors": formats}
        by = next((f" ({name})" for start, name in names.items() if form.startswith(start)), "")
        raise UsageError(f"{name} is stored {form}{by}, which Penstock does not read", hint=ADVICE)


def ignored_settings(folder: Path) -> str:
    """Return a note on settings of a quantized checkpoint that have no effect; empty if none."""
    settings = settings_in(read_config(folder)) or {}
    inputs = [group.get("input_activations") for group in _groups(settings)]
    method = _value(settings, "quant_method")
    unused = ["its KV cache scales (kv_cache_scheme)"] * bool(settings.get("kv_cache_scheme"))
    if any(inputs) or method == "fbgemm_fp8" or "activation_scheme" in settings:
        unused.append("the 8-bit activations that it was made for")
    if not unused:
        return ""
    return (
        f"{' and '.join(unused)} are not used: activations and caches keep the computing precision"
    )
