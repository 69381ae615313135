"""Finds the boundary between the halves of a model, from its class and structure. Loads nothing.

The input is a skeleton of a vision-language model or a dual encoder, without weights. How the cut
is found and made:

1. The owner O is the innermost module whose class defines `get_image_features` or
   `get_video_features`.
2. The reader R is O's child on the path to the decoder. H is the output head. The skeleton's own
   methods name the decoder and the head.
3. The audio half is the parts of O that `get_audio_features` names, directly or through other
   methods. The vision half is what O holds besides R, H and those. The language half is R, H and
   everything outside O.
4. Where the decoder is not strictly inside O, the vision half is the parts of O that those two
   methods name, directly or through other methods. The language half is the rest. A function's
   bytecode shows which attributes it names and which methods it calls, so nothing is run.
5. A dual encoder makes one vector of an image and one of a text, each with its own encoder. What
   only `get_image_features` reaches is the vision half. What `get_image_features` never reaches is
   the text half, called `language` as in other models. The cut runs between the model's direct
   children, because some of them read a child's weight without calling that child. The model's own
   parameters, such as the scale of its logits, are in both halves.
6. A half is described by what it leaves out: `absent_paths` lists those modules and parameters,
   outermost only.
7. `cut` replaces them by stand-ins that raise NeedsWeights when a computation uses them. Weight
   ties to them are removed.
8. Some halves call single modules of the other half. `modules_called` finds these in the bytecode
   of the methods that the half runs. Where it misses one, `extra_module_of` derives the module to
   load from the NeedsWeights error.

Windows of one length are computed with one call of attention, where that gives the same bits.
"""

import copy
import dis
import inspect
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import pairwise
from types import CodeType
from typing import Any, Final, NamedTuple

import torch
from torch import nn
from torch.utils.weak import WeakTensorKeyDictionary

from artifacts.disk.json_shapes import Json
from artifacts.errors import UsageError
from artifacts.schema import HalfName, Part
from artifacts.wording import counted, first_of
from stages.memory.cuda_graphs import same_bits
from stages.models.halves.absent import MissingModule, MissingWeight, NeedsWeights
from stages.models.protocols import Half
from stages.process.checks import WINDOWS, Verdicts

ATTENTION: Final = "penstock_flash_windows"
LOOP: Final = frozenset({"get_max_seqlen", "is_flash_attention_requested", "split", "tolist"})
"""Names in the code of an attention with windows, besides its argument `cu_seqlens`."""
EQUAL: dict[str, bool] = {}
"""Class, precision, length and number of windows → whether one call gives the loop's bits."""


Attend = Callable[..., torch.Tensor]
States = tuple[torch.Tensor, ...]
"""Queries, keys and values."""


class WindowGroup(NamedTuple):
    """The windows of one length."""

    length: int
    windows: int
    places: torch.Tensor | None
    """Where their tokens are; None: the windows are all of this length."""


class Windows:
    """The windows of a picture's tokens, known to the host."""

    def __init__(self, boundaries: torch.Tensor) -> None:
        """Take the first token of each window, and the number of tokens."""
        bounds, device = boundaries.tolist(), boundaries.device
        self.lengths: list[int] = [b - a for a, b in pairwise(bounds)]
        self.longest = max(self.lengths, default=0)
        starts: dict[int, list[int]] = {}
        for start, length in zip(bounds, self.lengths, strict=False):
            starts.setdefault(length, []).append(start)
        starts.pop(0, None)
        self.groups: list[WindowGroup] = []
        self.back: torch.Tensor | None = None
        """Where the tokens are in the concatenation of all groups; None for a single group."""
        places = [
            (torch.tensor(firsts)[:, None] + torch.arange(length)).flatten()
            for length, firsts in starts.items()
        ]
        for (length, group), place in zip(starts.items(), places, strict=True):
            index = place.to(device, non_blocking=True) if len(places) > 1 else None
            self.groups.append(WindowGroup(length, len(group), index))
        if len(places) > 1:
            self.back = torch.cat(places).argsort().to(device, non_blocking=True)


_known: Any = WeakTensorKeyDictionary()
"""Boundaries → their windows, read once for all layers."""


def windows_of(boundaries: torch.Tensor) -> Windows:
    """Return the windows with these boundaries."""
    if boundaries not in _known:
        _known[boundaries] = Windows(boundaries)
    windows: Windows = _known[boundaries]
    return windows


def group_windows(half: Half) -> int:
    """Have a half's attention modules with windows compute each length at once, permanently. Return
    their number. Only SDPA is replaced."""
    from transformers import AttentionInterface

    AttentionInterface.register(ATTENTION, _attention)
    configs: dict[int, Any] = {}
    modules = [m for m in half.modules() if has_windows(type(m)) and _attends(m) == "sdpa"]
    for module in modules:
        if id(module.config) not in configs:
            configs[id(module.config)] = copy.copy(module.config)
            configs[id(module.config)]._attn_implementation_internal = ATTENTION
        module.config = configs[id(module.config)]
        module.register_forward_pre_hook(_with_longest, with_kwargs=True)
    return len(modules)


def has_windows(cls: type[nn.Module]) -> bool:
    """Return whether a class of modules has the loop over windows."""
    return "cu_seqlens" in cls.forward.__code__.co_varnames and names_in(cls.forward) >= LOOP


def _attends(module: Any) -> Any:
    return getattr(getattr(module, "config", None), "_attn_implementation", None)


def _with_longest(module: Any, args: Any, kwargs: Any) -> Any:
    """Give the module the length of its longest window: it would read it from the device."""
    if (boundaries := kwargs.get("cu_seqlens")) is not None:
        kwargs["max_seqlen"] = windows_of(boundaries).longest
    return args, kwargs


def _attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: Any = None,
    cu_seq_lens_q: torch.Tensor | None = None,
    cu_seq_lens_k: Any = None,
    max_length_q: Any = None,
    max_length_k: Any = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Compute attention within windows. Shapes: [1, heads, tokens, width] → [1, tokens, heads,
    width]."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    def attend(*states: Any) -> torch.Tensor:
        query, key, value = states
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)[0]

    states = (query, key, value)
    if cu_seq_lens_q is None:
        return attend(*states), None
    windows = windows_of(cu_seq_lens_q)
    verdicts = [EQUAL.get(_name(module, g, query), g.windows == 1 or None) for g in windows.groups]
    if attention_mask is not None or len(query) != 1 or False in verdicts:
        return _loop(attend, states, windows), None
    if None not in verdicts:
        return _in_order(windows, [_together(attend, states, g) for g in windows.groups]), None
    attended = _loop(attend, states, windows)
    for group in (g for g in windows.groups if g.windows > 1):
        expected = (
            attended[0] if group.places is None else attended[0].index_select(0, group.places)
        )
        same = same_bits(expected, _together(attend, states, group))
        EQUAL[_name(module, group, query)] = same
    return attended, None


def _name(module: Any, group: WindowGroup, query: torch.Tensor) -> str:
    shape = f"{query.shape[1]} x {query.shape[3]}, {group.windows} of {group.length}"
    return f"{type(module).__qualname__} {str(query.dtype).removeprefix('torch.')} {shape}"


def _loop(attend: Attend, states: States, windows: Windows) -> torch.Tensor:
    """Compute each window by itself, as the module's own code does."""
    parts = [torch.split(state, windows.lengths, dim=2) for state in states]
    return torch.cat([attend(*window) for window in zip(*parts, strict=True)], dim=1)


def _together(attend: Attend, states: States, group: WindowGroup) -> torch.Tensor:
    """Compute the windows of one length as rows of a batch. Shape: [tokens, heads, width]."""
    tokens = [s if group.places is None else s.index_select(2, group.places) for s in states]
    rows = [s[0].unflatten(1, (group.windows, group.length)).transpose(0, 1) for s in tokens]
    return attend(*rows).flatten(0, 1)


def _in_order(windows: Windows, made: list[torch.Tensor]) -> torch.Tensor:
    """Return the results of all groups in the order of the tokens."""
    tokens = made[0] if windows.back is None else torch.cat(made).index_select(0, windows.back)
    return tokens[None]


class StoredWindows:
    """The results of comparisons on one device."""

    def __init__(self, verdicts: Verdicts) -> None:
        """Take over the stored results."""
        self._verdicts = verdicts
        self._stored = {n: e for v in verdicts.of(WINDOWS, {}) for n, e in v.outcome.items()}
        EQUAL.update(self._stored)

    def keep(self, half: Half) -> dict[str, Json]:
        """Store new results. Return which windows of this half are computed with one call per
        length, and which one by one because the bits would differ."""
        if new := {name: equal for name, equal in EQUAL.items() if name not in self._stored}:
            text = f"{sum(new.values())} of {counted(len(new), 'kind')} of windows of an encoder "
            text += f"({first_of(sorted(new))}) have the same bits in one call as one by one"
            self._verdicts.keep(WINDOWS, {"windows": sorted(new)}, new, text)
        classes = {type(module).__qualname__ for module in half.modules()}
        own = {name: equal for name, equal in EQUAL.items() if name.partition(" ")[0] in classes}
        apart = sorted(name for name, equal in own.items() if not equal)
        return {"together": len(own) - len(apart), "one_by_one": apart}


def names_in(function: Any) -> set[str]:
    """Return the names of attributes and globals that a function's code refers to."""
    return {name for code in _codes(function) for name in code.co_names}


def called_in(function: Any) -> set[str]:
    """Return the names of attributes that a function's code calls."""
    instructions = [i for code in _codes(function) for i in dis.get_instructions(code)]
    return {
        str(i.argval)
        for i in instructions
        # From Python 3.12 on, the lowest bit says that the loaded attribute is called.
        if i.opname == "LOAD_METHOD" or (i.opname == "LOAD_ATTR" and _calls(i.arg))
    }


def reached(
    cls: type[nn.Module],
    start: Iterable[str],
    read: Callable[[Any], set[str]],
    beyond: Iterable[str] = (),
) -> set[str]:
    """Return everything that `read` finds in the methods `start` of a class, and in the methods of
    the class itself that they refer to, except `beyond`."""
    todo, seen, collected = set(start), set(beyond), set[str]()
    while todo := {name for name in todo - seen if inspect.isfunction(getattr(cls, name, None))}:
        seen |= todo
        names = set[str]().union(*(read(getattr(cls, name)) for name in todo))
        collected |= names
        todo = {name for name in names if name in vars(cls)}
    return collected


def _calls(argument: int | None) -> bool:
    return sys.version_info >= (3, 12) and bool(argument and argument & 1)


def _codes(function: Any) -> Iterator[CodeType]:
    codes = [inspect.unwrap(function).__code__]
    while codes:
        code = codes.pop()
        yield code
        codes += [constant for constant in code.co_consts if isinstance(constant, CodeType)]


IMAGE_METHOD, TEXT_METHOD = "get_image_features", "get_text_features"
"""Names of the methods by which a dual encoder makes vectors."""
VIDEO_METHOD = "get_video_features"
HINT = "Choose a model of the CLIP kind: docs/embed.md lists them"


def makes_vectors(cls: type) -> bool:
    """Return whether a class is a dual encoder: it makes vectors of both, and generates no text."""
    from transformers import GenerationMixin

    methods = all(hasattr(cls, name) for name in (IMAGE_METHOD, TEXT_METHOD))
    return methods and not issubclass(cls, GenerationMixin)


def units_absent(model: nn.Module, cls: type, keep: HalfName) -> list[str]:
    """Return the model's own parts that a half does not need; `cls` is the whole model's class."""
    by_image_method, by_text_method = (
        reached(cls, [name], names_in) for name in (IMAGE_METHOD, TEXT_METHOD)
    )
    units = [name for name, _ in model.named_children()]
    if keep == "vision":
        return [name for name in units if name not in by_image_method]
    return [name for name in units if name in by_image_method - by_text_method]


def refuse_no_vectors(cls: type) -> None:
    """Refuse a class that neither generates text nor is a dual encoder of images. Raises
    UsageError."""
    if hasattr(cls, VIDEO_METHOD):
        raise UsageError(
            f"{cls.__name__} makes a vector of a whole video ({VIDEO_METHOD}), and none of a "
            "picture",
            hint=HINT,
        )
    missing = [f"no {name}" for name in (IMAGE_METHOD, TEXT_METHOD) if not hasattr(cls, name)]
    raise UsageError(
        f"{cls.__name__} does not write text token by token, nor make one vector of a picture and "
        f"one of a text (it has {' and '.join(missing)})",
        hint="Choose a model that captions (docs/models.md) or one of the CLIP kind "
        "(docs/embed.md)",
    )


HALVES: tuple[HalfName, HalfName] = ("vision", "language")
METHODS: Mapping[Part, tuple[str, ...]] = {
    "vision": ("get_image_features", "get_video_features"),
    "audio": ("get_audio_features",),
}
"""Half → names of the methods that compute its features."""
CUT = "_cut_from"
"""Attribute of a half's class that holds the class of the whole model."""


def absent_paths(model: nn.Module, keep: Part, extra_modules: Iterable[str] = ()) -> list[str]:
    """Return the paths of the modules and parameters that the kept part leaves out, outermost only.
    `extra_modules` of the other half are kept as well."""
    if keep == "whole":
        return []
    left_out = _absent_paths(model, keep)
    for piece in extra_modules:
        left_out = [p for path in left_out for p in _without(model, path, piece)]
    return left_out


def extra_module_of(model: nn.Module, error: NeedsWeights, keep: HalfName) -> str:
    """Return the path to load in addition to the half because of `error`. `model` is the half's
    skeleton. Below the reader, which is large, it is the module itself, else the whole unit."""
    left_out = next(p for p in _absent_paths(model, keep) if within(error.path, p))
    reader = reader_path(model, _owner(model))
    return error.module if reader is not None and within(left_out, reader) else left_out


def _without(model: nn.Module, left_out: str, piece: str) -> Iterator[str]:
    """Yield the paths below `left_out` that stay left out when `piece` is kept."""
    if within(left_out, piece):
        return
    if not within(piece, left_out):
        yield left_out
        return
    for name in _unit_names(model.get_submodule(left_out)):
        yield from _without(model, _join(left_out, name), piece)


def _absent_paths(model: nn.Module, keep: HalfName) -> list[str]:
    if makes_vectors(class_of(model)):
        return units_absent(model, class_of(model), keep)
    owner = _owner(model)
    reader = reader_path(model, owner)
    head = _path_of(model, _call(model, "get_output_embeddings"))
    of_language = {path for path in (reader, head) if path is not None}
    units = [_join(owner, name) for name in _unit_names(model.get_submodule(owner))]
    seen, heard = (_named(model, owner, METHODS[half]) for half in METHODS)
    if reader is None:
        # Parts that the feature methods name, also through other methods, are the encoders' halves.
        of_language |= {unit for unit in units if unit not in seen | heard}
    if keep == "language":
        return [unit for unit in units if unit not in of_language]
    if keep == "audio" and not heard - {reader}:
        raise UsageError(
            f"{type(model).__name__} hears nothing: it has no audio half",
            hint="Choose a model that hears: docs/models.md lists them",
        )
    others = heard - seen if keep == "vision" else set(units) - heard
    inside = [unit for unit in units if unit in of_language | others]
    deeper = [
        path
        for path in of_language
        if path.startswith(_join(owner, "")) and not any(within(path, unit) for unit in units)
    ]
    return [*_outside(model, owner), *inside, *deeper]


def hears(model: nn.Module) -> bool:
    """Return whether a model that sees has an audio half, too."""
    owner = owner_path(model)
    if owner is None or makes_vectors(class_of(model)):
        return False
    return bool(_named(model, owner, METHODS["audio"]) - {reader_path(model, owner)})


def _named(model: nn.Module, owner: str, methods: Iterable[str]) -> set[str]:
    """Return the paths of O's parts that its methods name, also through other methods."""
    owned = model.get_submodule(owner)
    named = reached(class_of(owned), methods, names_in)
    return {_join(owner, name) for name in _unit_names(owned) if name in named}


def cut(model: nn.Module, paths: list[str]) -> None:
    """Replace the modules and parameters at `paths` by stand-ins and remove weight ties to them."""
    for path in paths:
        parent_path, _, name = path.rpartition(".")
        parent = model.get_submodule(parent_path)
        if name in parent._parameters:
            delattr(parent, name)
            setattr(parent, name, MissingWeight(path))
        elif (part := parent._modules.get(name)) is not None:
            setattr(parent, name, MissingModule(part, path))
    for path, module in model.named_modules():
        if isinstance(ties := getattr(module, "all_tied_weights_keys", None), dict):
            module.all_tied_weights_keys = {
                target: source
                for target, source in ties.items()
                if not any(within(_join(path, end), p) for end in (target, source) for p in paths)
            }


def owner_path(model: nn.Module) -> str | None:
    """Return the path of O; None when the model has no boundary between the halves."""
    candidates: list[str] = [
        path
        for path, module in model.named_modules()
        if any(hasattr(type(module), f"get_{kind}_features") for kind in ("image", "video"))
    ]
    return max(candidates, key=lambda path: len(path.split(".")) if path else 0, default=None)


def _owner(model: nn.Module) -> str:
    owner = owner_path(model)
    if owner is None:
        raise UsageError(
            f"{type(model).__name__} has no vision half that can run by itself",
            hint="Choose a model of the image-text-to-text kind: docs/models.md lists them",
        )
    return owner


def belongs_to(path: str, halves: dict[HalfName, list[str]]) -> list[HalfName]:
    """Return the halves that keep the weight at `path`, given the paths that each leaves out."""
    return [half for half, absent in halves.items() if not any(within(path, p) for p in absent)]


def modules_called(model: nn.Module, keep: Part) -> tuple[str, ...]:
    """Return the modules of the other half that the half's own code calls. Examples are a projector
    that runs in the language half, and the embeddings where features are made from codes."""
    if keep == "whole" or makes_vectors(class_of(model)):
        return ()
    owner = _owner(model)
    cls = class_of(model.get_submodule(owner))
    left_out = _absent_paths(model, keep)
    if keep in METHODS:
        called = reached(cls, METHODS[keep], called_in)
        embeddings = _path_of(model, _call(model, "get_input_embeddings"))
        paths = [embeddings] if embeddings and "get_input_embeddings" in called else []
        paths = [path for path in paths if any(within(path, p) for p in left_out)]
    else:
        beyond = (*METHODS["vision"], *METHODS["audio"])
        called = reached(cls, ["forward"], called_in, beyond)
        called |= reached(class_of(model), ["forward"], called_in, beyond)
        paths = []
    return tuple([*paths, *(unit for unit in left_out if _called_part(owner, unit) in called)])


def class_of(module: nn.Module) -> type[nn.Module]:
    """Return the class that defines a module's methods; a half's class names it in `CUT`."""
    cls = type(module)
    defining: type[nn.Module] = vars(cls).get(CUT, cls)
    return defining


def _called_part(owner: str, path: str) -> str:
    """Return the name of O's part at a path, or "" for a path elsewhere."""
    name = path.removeprefix(_join(owner, "") if owner else "")
    return "" if "." in name or (name == path and owner) else name


def _outside(model: nn.Module, owner: str) -> Iterator[str]:
    """Yield the paths off the path from the root to O."""
    way = owner.split(".") if owner else []
    for depth, step in enumerate(way):
        path = ".".join(way[:depth])
        for name in _unit_names(model.get_submodule(path)):
            if name != step:
                yield _join(path, name)


def reader_path(model: nn.Module, owner: str) -> str | None:
    """Return the path of R; None when the decoder is not inside O."""
    decoder = _path_of(model, _call(model, "get_decoder"))
    if decoder is None or decoder == owner or not within(decoder, owner):
        return None
    return _join(owner, decoder.removeprefix(owner).removeprefix(".").split(".")[0])


def _unit_names(module: nn.Module) -> list[str]:
    children = [name for name, child in module.named_children() if child is not None]
    return [*children, *(name for name, _ in module.named_parameters(recurse=False))]


def _call(model: nn.Module, method: str) -> Any:
    try:
        return getattr(model, method)()
    except (AttributeError, NotImplementedError):
        return None


def _path_of(model: nn.Module, module_sought: Any) -> str | None:
    return next((path for path, module in model.named_modules() if module is module_sought), None)


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def within(path: str, ancestor: str) -> bool:
    """Return whether a path equals another or is below it."""
    return not ancestor or path == ancestor or path.startswith(f"{ancestor}.")
