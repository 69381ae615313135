"""Reads a PEFT adapter's configuration and headers, and matches it to a model's modules.

A LoRA adds B x A, times a scale, to the matrix of a linear layer. Many adapters of that name add
something else as well. Their configuration shows it, and the reader refuses every adapter that is
not a plain LoRA. It reads each module's rank and the scale of its B x A from the configuration,
whose patterns are matched in linear time.

The module finds the modules of a model that an adapter changes, or the reason why it does not fit.
An adapter names modules as the model does, or as older versions of transformers did, which took the
names from the checkpoint's files. The matching imports no model library.
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from artifacts.disk.json_shapes import Json
from artifacts.disk.patterns import LITERAL, ends_with
from artifacts.disk.regular_files import read_text
from artifacts.errors import EnvironmentFault, UsageError
from stages.models.hub.checkpoint import JSON_BYTES
from stages.models.hub.headers import TensorPlace, read_metadata, read_places
from stages.models.profile import AdaptableLayer, ModelProfile, PartProfile
from stages.models.published import AS_PUBLISHED, FIELD

COPY_HINT = "Copy it again from where it was trained"
MAX_PATTERNS = 4096
"""Maximum number of modules with their own rank or alpha: more than the layers of any model."""
MAX_EXPRESSIONS = 64
"""Maximum number of patterns that are not plain module names."""
LARGEST = 2.0**31
"""Exclusive upper bound of ranks and alphas."""


def rank_and_scale(config: Path, settings: Mapping[str, Json], path: str) -> tuple[int, float]:
    """Return the rank of one module and the factor of its B x A. Raises UsageError."""
    rank = _of_module(config, settings, path, "r", "rank_pattern")
    alpha = _of_module(config, settings, path, "lora_alpha", "alpha_pattern")
    if rank < 1 or rank != int(rank):
        raise UsageError(f"{config}: r is {rank:g}", hint=COPY_HINT)
    return int(rank), alpha / (math.sqrt(rank) if settings.get("use_rslora") else rank)


def _of_module(
    config: Path, settings: Mapping[str, Json], path: str, name: str, patterns: str
) -> float:
    """Return a setting for a module: the value of the first pattern that matches the end of its
    path, else the general value."""
    number, by_pattern = settings.get(name), settings.get(patterns) or {}
    if not isinstance(by_pattern, dict) or len(by_pattern) > MAX_PATTERNS:
        raise UsageError(
            f"{config}: {patterns} must map at most {MAX_PATTERNS:,} names to numbers",
            hint=COPY_HINT,
        )
    if sum(not LITERAL.fullmatch(key) for key in by_pattern) > MAX_EXPRESSIONS:
        raise UsageError(
            f"{config}: {patterns} has more than {MAX_EXPRESSIONS} expressions",
            hint="Use module names there",
        )
    try:
        number = next((by_pattern[key] for key in by_pattern if ends_with(key, path)), number)
    except ValueError as error:
        raise UsageError(
            f"{config}: {patterns} cannot be matched: {error}",
            hint="Use module names there, or another adapter",
        ) from error
    if isinstance(number, bool) or not isinstance(number, int | float) or not abs(number) < LARGEST:
        raise UsageError(f"{config}: no valid {name}, which determines the scale", hint=COPY_HINT)
    return number


ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PICKLED = "adapter_model.bin"
MERGE_FIRST = (
    "Merge it with PEFT (merge_and_unload, save_pretrained), and give that folder as the model"
)
PREFIX = "base_model.model."
"""Prefix of all names: PEFT's name for the model that it wraps."""
LOW_RANK = re.compile(r"(?P<path>.+)\.lora_(?P<embedding>embedding_)?(?P<side>[AB])(\.weight)?")
WRAPPERS = re.compile(r"\.(base_layer|modules_to_save)(?=\.)")
"""Modules that PEFT wraps around one of the model's."""
BASE = "penstock_base"
"""Field of the metadata of an adapter's weights: the digest of the weights it was trained on."""
FLOATS = ("F64", "F32", "F16", "BF16")
"""Number types that an adapter may use."""
MORE_THAN_LORA: Mapping[str, str] = {
    "use_dora": "DoRA",
    "use_qalora": "QA-LoRA",
    "use_bdlora": "block-diagonal LoRA",
    "lora_bias": "LoRA with biases",
    "target_parameters": "LoRA of parameters that are no layer",
    "trainable_token_indices": "single trained tokens",
    "alora_invocation_tokens": "activated LoRA",
    "layer_replication": "repeated layers",
    "arrow_config": "Arrow",
    "kasa_config": "KaSA",
    "monteclora_config": "MonteCLoRA",
}
"""Settings that require more than B x A → name of the method."""
UNCHANGING_INITIALIZATIONS = ("gaussian", "eva", "orthogonal")
"""Initializations, besides the default, that leave the model's own weights unchanged."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LowRank:
    """The matrices whose product is added to one weight."""

    a: str
    """Name of A: rank x columns."""
    b: str
    """Name of B: rows x rank."""
    shape: tuple[int, int]
    """Rows and columns of B x A."""
    scale: float
    embedding: bool
    """Whether the weight is an embedding table, with one row per token."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LoraAdapter:
    """An adapter whose weights have not been read."""

    folder: Path
    base: str
    """Name of the model that it was trained on, as the adapter states it."""
    transposed: bool
    """Whether the trained layers store their weights transposed, if the model does not show it."""
    places: Mapping[str, TensorPlace]
    """Tensor → its location in the file."""
    low_rank: Mapping[str, LowRank]
    """Path of a module of the model → what is added to its weight."""
    whole: Mapping[str, str] = field(default_factory=dict)
    """Path of a parameter of the model → the tensor that replaces it."""
    as_published: bool | None = None
    """Whether it was trained on the model as published; None: the adapter does not state it."""
    base_digest: str = ""
    """Digest of the weights that it was trained on; empty: the adapter does not state it."""

    @property
    def weights(self) -> Path:
        return self.folder / ADAPTER_WEIGHTS


def read_adapter(folder: Path) -> LoraAdapter:
    """Return the adapter in a folder. Raises UsageError if it is not a plain LoRA, EnvironmentFault
    if it is incomplete."""
    settings = _settings(folder)
    _refuse_more_than_lora(folder, settings)
    path = folder / ADAPTER_WEIGHTS
    if not path.exists():
        pickled = f" but {PICKLED}, a pickle, which can run code" * (folder / PICKLED).exists()
        raise UsageError(
            f"{folder} has no {ADAPTER_WEIGHTS}{pickled}",
            hint="Save it again with PEFT's default format: save_pretrained(folder)",
        )
    places = read_places(path)
    metadata = read_metadata(path)
    stated = metadata.get(FIELD)
    matrices: dict[str, dict[str, str]] = {}
    modules: dict[str, str] = {}
    for name, place in places.items():
        bare = WRAPPERS.sub("", name.removeprefix(PREFIX))
        match = LOW_RANK.fullmatch(bare)
        if place.dtype not in FLOATS or ("lora_" in bare and match is None):
            raise _more_than_lora(folder, f"holds {name} ({place.dtype})")
        if match is None:
            modules[bare] = name
        else:
            side = (match["embedding"] or "") + match["side"]
            matrices.setdefault(match["path"], {})[side] = name
    low_rank = {p: _low_rank(folder, settings, p, of, places) for p, of in matrices.items()}
    if not (low_rank or modules):
        raise UsageError(f"{path} contains no tensors", hint=COPY_HINT)
    _check_saved(folder, settings, modules)
    return LoraAdapter(
        folder=folder,
        base=str(settings.get("base_model_name_or_path") or ""),
        transposed=bool(settings.get("fan_in_fan_out")),
        places=places,
        low_rank=low_rank,
        whole=modules,
        as_published=None if stated is None else stated == AS_PUBLISHED,
        base_digest=metadata.get(BASE, ""),
    )


def _settings(folder: Path) -> dict[str, Json]:
    path = folder / ADAPTER_CONFIG
    if not path.exists():
        inside = sorted(file.parent for file in folder.glob(f"*/{ADAPTER_CONFIG}"))
        hint = f"Give {inside[-1]}" if inside else "Give the folder that PEFT or ms-swift saved"
        raise UsageError(f"{folder} has no {ADAPTER_CONFIG}: it is not an adapter", hint=hint)
    try:
        settings = json.loads(read_text(path, JSON_BYTES))
    except OSError as error:
        raise EnvironmentFault(f"{path}: {error.strerror}", hint=COPY_HINT) from error
    except (ValueError, RecursionError) as error:
        raise EnvironmentFault(f"{path} cannot be read as JSON", hint=COPY_HINT) from error
    if not isinstance(settings, dict):
        raise EnvironmentFault(f"{path} is not a JSON object of settings", hint=COPY_HINT)
    return settings


def _refuse_more_than_lora(folder: Path, settings: Mapping[str, Json]) -> None:
    """Refuse an adapter that is not a LoRA, or more than one. Raises UsageError."""
    kind = settings.get("peft_type")
    if kind != "LORA":
        raise UsageError(
            f"{folder} is an adapter of type {kind or '(none)'}; only LORA is supported",
            hint=MERGE_FIRST,
        )
    for setting, feature in MORE_THAN_LORA.items():
        if settings.get(setting):
            raise _more_than_lora(folder, f"uses {feature} ({setting})")
    if settings.get("bias") not in (None, "none"):
        raise _more_than_lora(folder, f"trained biases (bias is {settings['bias']})")
    start = settings.get("init_lora_weights")
    if isinstance(start, str) and start not in UNCHANGING_INITIALIZATIONS:
        raise _more_than_lora(folder, f"changed the model's own weights before training ({start})")


def _more_than_lora(folder: Path, why: str) -> UsageError:
    return UsageError(f"{folder} {why}, which is more than a LoRA", hint=MERGE_FIRST)


def of_another_model(adapter: LoraAdapter, why: str) -> UsageError:
    """Return the error for an adapter that does not fit a model."""
    base = adapter.base
    return UsageError(
        f"{adapter.folder} {why}: it belongs to another model",
        hint=f"Give the model that it was trained on{f', {base}' if base else ''}",
    )


def _low_rank(
    folder: Path,
    settings: Mapping[str, Json],
    path: str,
    names: Mapping[str, str],
    places: Mapping[str, TensorPlace],
) -> LowRank:
    """Return what is added to the weight of one module, after checking its own consistency."""
    embedding = any(side.startswith("embedding_") for side in names)
    sides = ("embedding_A", "embedding_B") if embedding else ("A", "B")
    if set(names) != set(sides):
        raise EnvironmentFault(f"{folder / ADAPTER_WEIGHTS} lacks A or B of {path}", hint=COPY_HINT)
    a, b = (places[names[side]].shape for side in sides)
    if len(a) != 2 or len(b) != 2:
        raise _more_than_lora(folder, f"changes {path}, which is a convolution")
    rank, scale = rank_and_scale(folder / ADAPTER_CONFIG, settings, path)
    if not a[0] == b[1] == rank:
        raise EnvironmentFault(
            f"{folder} has ranks {a[0]} and {b[1]} at {path}, but its {ADAPTER_CONFIG} says {rank}",
            hint=COPY_HINT,
        )
    first, second = (names[side] for side in sides)
    return LowRank(a=first, b=second, shape=(b[0], a[1]), scale=scale, embedding=embedding)


def _check_saved(folder: Path, settings: Mapping[str, Json], whole: Mapping[str, str]) -> None:
    """Refuse an adapter without a module that was trained whole. Raises EnvironmentFault, and
    UsageError for settings that do not list such modules by name."""
    modules = settings.get("modules_to_save") or []
    if not isinstance(modules, list) or not all(isinstance(name, str) for name in modules):
        raise UsageError(
            f"{folder / ADAPTER_CONFIG}: modules_to_save is not a list of names", hint=COPY_HINT
        )
    for module in modules:
        if not any(f".{module}." in f".{path}" for path in whole):
            raise EnvironmentFault(
                f"{folder / ADAPTER_WEIGHTS} lacks {module}, which was trained whole",
                hint=COPY_HINT,
            )


def modules_of(adapter: LoraAdapter, profile: ModelProfile) -> dict[str, str]:
    """Return the modules that an adapter changes: path in the adapter → path in the model.

    Raises UsageError for an adapter of another model, or one that changes anything but products of
    the language half."""
    if adapter.whole:
        raise _refused(adapter, f"holds {next(iter(adapter.whole))}, which was trained whole")
    language, vision = (_by_name(profile.parts[part]) for part in ("language", "vision"))
    modules: dict[str, str] = {}
    for path, low_rank in adapter.low_rank.items():
        if low_rank.embedding:
            raise _refused(adapter, f"changes {path}, an embedding table")
        if path not in language and path in vision:
            raise _refused(adapter, f"changes {path}, which belongs to the vision half")
        if path not in language:
            raise of_another_model(adapter, f"changes {path}, which {profile.folder} does not have")
        layer = language[path]
        ours = (layer.rows, layer.columns)
        if low_rank.shape != ours:
            shapes = [" x ".join(map(str, shape)) for shape in (low_rank.shape, ours)]
            why = f"changes {path} of {shapes[0]}, which is {shapes[1]} in {profile.folder}"
            raise of_another_model(adapter, why)
        if layer.path in modules.values():
            raise UsageError(
                f"{adapter.folder} changes {layer.path} twice, the second time as {path}",
                hint=MERGE_FIRST,
            )
        modules[path] = layer.path
    return modules


def _by_name(part: PartProfile) -> Mapping[str, AdaptableLayer]:
    """Return the layers of a part by each of their names; current names take precedence."""
    stored = {layer.stored: layer for layer in part.adaptable if layer.stored}
    return {**stored, **{layer.path: layer for layer in part.adaptable}}


def _refused(adapter: LoraAdapter, why: str) -> UsageError:
    return UsageError(
        f"{adapter.folder} {why}: only layers of the language half can be adapted at run time",
        hint=MERGE_FIRST,
    )
