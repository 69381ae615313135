"""Loads one half of a model through its own `from_pretrained`.

A subclass of the model's class leaves the other half out in `__init__`. The loader finds no place
for those tensors and never reads them. Its renaming, dtype and quantization work as usual. If the
half's code turns out to need modules of the other half, the half is loaded again with them.
"""

import contextlib
import json
import re
import tempfile
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

from artifacts.errors import EnvironmentFault, UsageError
from artifacts.schema import Part
from artifacts.wording import counted, meant
from stages.models.halves.boundary import CUT, absent_paths, cut, modules_called
from stages.models.halves.model_class import config_and_class, one_line, skeleton_of, with_packages
from stages.models.halves.ranged_reads import NOTE, pinned_reads, ranged_reads
from stages.models.halves.text_positions import apply_published_positions
from stages.models.hub.checkpoint import INDEX, SINGLE, weight_names
from stages.models.hub.errors import PICKLES
from stages.models.hub.foreign_folders import without_weights
from stages.models.hub.headers import local_headers
from stages.models.hub.quantized import is_read_here
from stages.models.hub.resolve import fetch_rest, resolve_model
from stages.models.in_tree.registry import native_of
from stages.models.protocols import Half, as_half, module_of
from stages.models.stored.layer_names import stored_layers, stored_settings
from stages.models.stored.layers import StoredWeights, note_form, pack_linears, packable
from stages.models.stored.layouts import parts_of


@contextlib.contextmanager
def present_weights(folder: Path) -> Iterator[Path]:
    """Yield the folder itself if all files of its index are present. Else yield a folder of links
    to those present, with an index of them alone. Then the loader reports the missing tensors."""
    absent = {name for name in weight_names(folder) if not (folder / name).exists()}
    if not absent or not (folder / INDEX).exists():
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="penstock-weights-") as temporary:
        view = Path(temporary)
        for path in folder.iterdir():
            if path.name not in {INDEX, *absent}:
                (view / path.name).symlink_to(path.resolve())
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        listed = {name: file for name, file in index["weight_map"].items() if file not in absent}
        (view / INDEX).write_text(json.dumps({**index, "weight_map": listed}), encoding="utf-8")
        yield view


OPTIONS = (
    *("dtype", "torch_dtype", "device_map", "max_memory", "attn_implementation", "revision"),
    *("quantization_config", "trust_remote_code", "offload_folder", "low_cpu_mem_usage"),
    *("use_safetensors", "extra_modules", "without", "stored_quantization", "packed"),
)
"""Options that users may give."""
UNEXPECTED = re.compile(r"unexpected keyword argument '(\w+)'")
SHAPE_ERRORS = ("ignore_mismatched_sizes", "size mismatch")
"""Words in the loader's errors about weights that have no place in the model."""


def load_half(
    path: str | Path,
    keep: Part,
    *,
    extra_modules: Iterable[str] | None = None,
    without: Iterable[str] = (),
    **options: Any,
) -> Half:
    """Load one half of the model at `path` (a folder or hub id), or the whole, in eval mode.

    `extra_modules` are paths of modules in the other half that this half needs too. With None, they
    are found in the model's classes. `without` are paths of this half to leave out.

    `options` are those of `from_pretrained`: dtype, attn_implementation, device_map,
    trust_remote_code, revision, quantization_config; and `stored_quantization`, which replaces the
    quantization settings of a quantized checkpoint's config.json; and `packed`, which keeps layers
    packed that other programs quantized, and unpacks each when it computes.

    Raises UsageError if the model cannot be cut or is not trusted, EnvironmentFault if weights are
    missing.
    """
    _refuse_no_part(keep)
    given = {**options, "extra_modules": None if extra_modules is None else tuple(extra_modules)}
    given["without"] = tuple(without)
    trusted = bool(options.get("trust_remote_code", False))
    folder = resolve_model(path, options.pop("revision", None))
    as_published = options.pop("as_published", None)
    config, cls = config_and_class(folder, trusted, as_published)
    refuse_pickle(folder, trusted)
    if (settings := options.pop("stored_quantization", None)) is not None:
        config.quantization_config = settings
    stored = _stored_weights(
        folder, config, cls, options.get("dtype"), packed=options.pop("packed", False)
    )
    options.setdefault("use_safetensors", None if trusted else True)
    places = {str(place) for place in (options.get("device_map") or {"": "cpu"}).values()}
    quantized = options.get("quantization_config") or getattr(config, "quantization_config", None)
    own = half_class(cls, keep, given["extra_modules"], given["without"], stored)
    with (
        _whole_weights(folder),
        with_packages(cls),
        present_weights(folder) as present,
        _reads(present, places, bool(quantized), stored) as note,
        _known_options(options),
    ):
        model, loading_info = own.from_pretrained(
            present, config=config, output_loading_info=True, **options
        )
    missing = sorted(loading_info["missing_keys"])
    if missing and fetch_rest(folder):  # an extra module's file had not been downloaded
        del model, loading_info
        return load_half(path, keep, **given)
    if missing:
        raise lacks_tensors(str(folder), "model" if keep == "whole" else f"{keep} half", missing)
    if note:
        model.__dict__[NOTE] = note
    _cast_and_note(model, config, stored)
    apply_published_positions(module_of(model), folder, as_published)
    return as_half(model.eval())


def _refuse_no_part(keep: str) -> None:
    """Raise UsageError for what is no part of a model."""
    if keep not in get_args(Part):
        raise UsageError(
            f"a model has no half {keep!r}{meant(str(keep), get_args(Part))}",
            hint='Give "vision" or "language", "audio" if it hears, or "whole" for all of it',
        )


def lacks_tensors(name: str, part: str, missing: list[str]) -> EnvironmentFault:
    """Return the error for files called `name` without these tensors of a `part` of the model."""
    return EnvironmentFault(
        f"{name} lacks {counted(len(missing), 'tensor')} of the {part}, such as {missing[0]}",
        hint="Download or save the checkpoint again",
    )


def _stored_weights(
    folder: Path, config: Any, cls: type[Any], dtype: Any, *, packed: bool
) -> StoredWeights | None:
    """Return the layers that another program than bitsandbytes quantized, and make the loader take
    the checkpoint for one in 16 bit; None for other checkpoints."""
    import torch

    settings = stored_settings(config) or {}
    present = [name for name in weight_names(folder) if (folder / name).exists()]
    headers = local_headers(folder, present)
    if not (is_read_here(settings) or parts_of(headers, settings)):
        return None
    skeleton = skeleton_of(config, cls)
    layers = stored_layers(skeleton, headers)
    if not is_read_here(settings):
        return None
    for part_config in (config, config.get_text_config(decoder=True)):
        part_config.__dict__.pop("quantization_config", None)
    stated = config.dtype or torch.float32
    return StoredWeights(
        layers=layers,
        stated=stated,
        computed=stated if dtype == "auto" else dtype or torch.float32,
        packed=packable(skeleton, layers) if packed else frozenset(),
    )


def _cast_and_note(model: Half, config: Any, stored: StoredWeights | None) -> None:
    """Cast what a quantized model has in full, and note the form of `stored` weights in it."""
    if getattr(config, "quantization_config", None) is not None:
        _cast_unquantized(model)
    if stored is not None:
        note_form(module_of(model), stored)


def _cast_unquantized(model: Half) -> None:
    """Cast what is not quantized to the model's dtype. Of a checkpoint saved by bitsandbytes, the
    loader casts every bias but leaves each `.weight` in its stored dtype, and torch refuses such
    mixtures: a model stored in bf16 would fail on a device without bf16."""
    import torch

    dtype = model.config.dtype
    in_full = [name.replace("*", ".*") for name in model._get_dtype_plan(dtype)]
    for name, weight in model.named_parameters():
        if weight.dtype in (torch.bfloat16, torch.float16) and not hasattr(weight, "quant_state"):
            full = any(re.search(pattern, name) for pattern in in_full)
            weight.data = weight.data.to(torch.float32 if full else dtype)


def _reads(
    folder: Path, places: Collection[str], quantized: bool, stored: StoredWeights | None
) -> contextlib.AbstractContextManager[str | None]:
    """Return how weights are read: in ranges for the host, through pinned memory for a half that is
    wholly on one GPU and computes with what it reads. `stored` weights are made where the half
    is."""
    if {*places} <= {"cpu", "disk"}:
        return ranged_reads(stored)
    if stored is not None:
        return ranged_reads(stored, next(iter(places)) if len(places) == 1 else "cpu")
    if len(places) == 1 and next(iter(places)).startswith("cuda") and not quantized:
        return pinned_reads(folder)
    return contextlib.nullcontext()


@contextlib.contextmanager
def _whole_weights(folder: Path) -> Iterator[None]:
    """Turn the loader's errors about unreadable weights, or weights of other shapes than the
    configuration's, into EnvironmentFault."""
    from safetensors import SafetensorError

    try:
        yield
    except SafetensorError as error:
        raise EnvironmentFault(
            f"the weights in {folder} cannot be read: {one_line(error)}",
            hint="Download it again (with git: git lfs pull)",
        ) from error
    except RuntimeError as error:
        if not any(word in str(error) for word in SHAPE_ERRORS):
            raise  # such as out of memory, which is not the checkpoint's fault
        raise EnvironmentFault(
            f"the weights in {folder} do not have the shapes that its config.json states",
            hint="Download the checkpoint again: its files belong to different versions",
        ) from error


@contextlib.contextmanager
def _known_options(options: Mapping[str, Any]) -> Iterator[None]:
    """Turn a model's error about an unknown option into UsageError."""
    try:
        yield
    except TypeError as error:
        match = UNEXPECTED.search(str(error))
        if match is None or match[1] not in options:
            raise
        raise UsageError(
            f"load_half has no option {match[1]}{meant(match[1], OPTIONS)}",
            hint="Options are those of from_pretrained: docs/python.md",
        ) from error


def half_class(
    cls: type[Any],
    keep: Part,
    extra_modules: tuple[str, ...] | None,
    without: tuple[str, ...] = (),
    stored: StoredWeights | None = None,
) -> type[Any]:
    """Make a subclass of `cls` that leaves out the other half when it is built. It keeps
    `extra_modules` (None: the modules that the half calls), and also leaves out the paths
    `without`. Layers that `stored` keeps packed are replaced by packed ones."""

    def __init__(self: Any, config: Any, *args: Any, **kwargs: Any) -> None:
        cls.__init__(self, config, *args, **kwargs)
        paths = absent_paths(
            self, keep, modules_called(self, keep) if extra_modules is None else extra_modules
        )
        paths = [*paths, *without]
        cut(self, paths)
        if stored is not None:
            pack_linears(self, stored)
        ignored = set(self._keys_to_ignore_on_load_unexpected or ())
        self._keys_to_ignore_on_load_unexpected = ignored | _patterns(self.base_model_prefix, paths)

    own = {"__init__": __init__, "__module__": cls.__module__, CUT: cls}
    return type(cls.__name__, (cls,), own)


def _patterns(prefix: str, paths: list[str]) -> set[str]:
    """Return patterns of the names under which a checkpoint may hold what was left out, with or
    without the prefix."""
    names = {*paths, *(path.removeprefix(f"{prefix}.") for path in paths if prefix)}
    return {rf"^{re.escape(name)}(\.|$)" for name in names}


def refuse_pickle(folder: Path, trusted: bool) -> None:
    """Refuse a model without weights, with pickles only, or with files that no index names. Raises
    UsageError."""
    if (folder / SINGLE).exists() or (folder / INDEX).exists():
        return
    names = [path.name for path in folder.iterdir()]
    if not trusted or native_of(folder) is not None or not any(n.endswith(PICKLES) for n in names):
        raise without_weights(str(folder), names, str(folder))
