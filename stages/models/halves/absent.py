"""Stand-ins for the half that was left out, and chunked computation of a half's long inputs.

The stand-ins replace the modules and weights of the absent half. A skeleton on the meta device
answers plain attributes (configs, sizes, dtypes), because models read them across the cut. Using a
tensor, or calling anything that computes, raises NeedsWeights.

The position-wise modules of a half run over long inputs in chunks, which limits their peak memory.
The hidden layer of an MLP is several times as wide as its input and output. For a long prompt it is
the peak of decoding. A position-wise module is recognized by its structure, and then verified by
running it.
"""

import copy
from collections.abc import Iterator
from types import MethodType
from typing import Any, NoReturn

import torch
from torch import nn

from artifacts.errors import PenstockError
from stages.models.protocols import Half


class NeedsWeights(PenstockError, RuntimeError):
    """Raised when a computation needs a module that was left out. `path` names the module, and
    `module` the smallest part that can be loaded to provide it."""

    def __init__(self, path: str, module: str | None = None) -> None:
        super().__init__(
            f"{path} is needed, but belongs to the half of the model that was not loaded",
            hint="Load the other half, the whole model, or this one with "
            f'pieces=["{module or path}"]',
        )
        self.path = path
        self.module = module or path


class MissingModule(nn.Module):
    """A module without weights in place of the module whose skeleton it wraps."""

    _is_hf_initialized = True
    """Flag that tells the loader not to initialize this module."""

    def __init__(self, skeleton: nn.Module, path: str) -> None:
        super().__init__()
        self.__dict__.update(_skeleton=skeleton, _path=path)

    def __getattr__(self, name: str) -> Any:
        skeleton = self.__dict__.get("_skeleton")
        if skeleton is None:
            raise AttributeError(name)
        value = getattr(skeleton, name)
        path = f"{self._path}.{name}"
        if isinstance(value, torch.Tensor):
            return self.weight_at(path)
        if isinstance(value, nn.Module):
            return self.module_at(value, path)
        if isinstance(value, MethodType) and value.__self__ is skeleton:
            # A method may only return an attribute; run on this object, it raises when it computes.
            return MethodType(value.__func__, self)
        return value

    @property
    def skeleton(self) -> nn.Module:
        """Return the module that this one replaces, without storage."""
        skeleton: nn.Module = self.__dict__["_skeleton"]
        return skeleton

    def weight_at(self, path: str) -> Any:
        """Return the stand-in for one of its parameters."""
        return MissingWeight(path, self._path)

    def module_at(self, skeleton: nn.Module, path: str) -> "MissingModule":
        """Return the stand-in for one of its submodules."""
        return MissingModule(skeleton, path)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        raise NeedsWeights(self._path)


class MissingWeight:
    """A stand-in for a missing parameter; every use raises NeedsWeights. Merely naming it does not
    raise: a model's `_init_weights` names the parameters of its modules."""

    _is_hf_initialized = True
    """Flag that makes the model's own `_init_weights`, which names the parameter, skip it."""

    def __init__(self, path: str, module: str | None = None) -> None:
        """Stand in for the parameter at `path`; loading `module` provides it."""
        self._path = path
        self._module = module

    def _needed(self) -> NeedsWeights:
        return NeedsWeights(self._path, self._module)

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("__"):
            raise AttributeError(name)
        raise self._needed()

    def __getitem__(self, key: Any) -> NoReturn:
        raise self._needed()

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> NoReturn:
        lists = [part for part in args if isinstance(part, list | tuple)]
        missing = [p for part in (args, *lists) for p in part if isinstance(p, cls)]
        raise missing[0]._needed() if missing else NeedsWeights("a parameter")


WIDENING = 2
"""A module is chunked if its widest layer is at least this many times as wide as its input."""
ALLOWED_MODULES = (
    "torch.nn.modules.activation",
    "torch.nn.modules.dropout",
    "transformers.activations",
)
"""Modules whose classes may stand between linear layers."""


def chunk_position_wise(half: Half, rows: int) -> int:
    """Make the MLPs of a half's layers process at most `rows` positions at once, permanently.
    Return the number of such MLPs. A second call changes nothing."""
    chunked = [m for m in half.modules() if isinstance(m.__dict__.get("forward"), _ChunkedForward)]
    if rows and not chunked:
        chunked = list(_mlps(half))
        for module in chunked:
            module.__dict__["forward"] = _ChunkedForward(module.forward, rows)
    return len(chunked)


class _ChunkedForward:
    """A module's forward, run over chunks of its input."""

    def __init__(self, whole: Any, rows: int) -> None:
        self.whole = whole
        self._rows = rows

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        flat = hidden.reshape(-1, hidden.shape[-1])
        if len(flat) <= self._rows:
            return self.whole(hidden)  # type: ignore[no-any-return]
        first: torch.Tensor = self.whole(flat[: self._rows])
        made = first.new_empty(len(flat), first.shape[-1])
        made[: self._rows] = first
        for at in range(self._rows, len(flat), self._rows):
            made[at : at + self._rows] = self.whole(flat[at : at + self._rows])
        return made.view(*hidden.shape[:-1], -1)


def _mlps(half: Half) -> Iterator[nn.Module]:
    """Yield the position-wise modules of the half's layers that are wider inside than outside. One
    module of each class and shape is tested."""
    verdicts: dict[Any, bool] = {}
    inside: list[nn.Module] = []
    for module in half.modules():
        if any(module is part for part in inside) or isinstance(module, MissingModule):
            continue
        linears = _linears(module)
        if len(linears) < 2:
            continue
        shapes = tuple((layer.in_features, layer.out_features) for layer in linears)
        kind = (type(module), shapes)
        if kind not in verdicts:
            outside, widest = shapes[0][0], max(width for _, width in shapes)
            widens = widest >= WIDENING * outside
            verdicts[kind] = widens and _is_position_wise(module, outside, half)
        if verdicts[kind]:
            inside.extend(module.modules())
            yield module


def _linears(module: nn.Module) -> list[Any]:
    """Return the linear layers of a module. Return none if it has other children besides
    activations and dropout, or weights of its own."""
    leaves = [part for part in module.modules() if not any(True for _ in part.children())]
    linears = [leaf for leaf in leaves if isinstance(leaf, nn.Linear)]  # quantized ones too
    others = [leaf for leaf in leaves if not isinstance(leaf, nn.Linear) and not _is_allowed(leaf)]
    own = [weight for part in module.modules() if part not in leaves for weight in part._parameters]
    return [] if others or own or len(linears) == len(leaves) == 1 else linears


def _is_allowed(leaf: nn.Module) -> bool:
    named = type(leaf).__module__ in ALLOWED_MODULES and not isinstance(leaf, nn.MultiheadAttention)
    return named or isinstance(leaf, nn.Identity)


def _is_position_wise(module: nn.Module, width: int, half: Half) -> bool:
    """Return whether two positions together give what each gives alone, for any arrangement."""
    rows = torch.randn(1, 2, width, generator=torch.Generator().manual_seed(0))
    rows = rows.to(device=half.device, dtype=half.dtype)
    if any(weight.is_meta for weight in module.parameters()):  # its weights are streamed
        module = copy.deepcopy(module).to_empty(device=half.device)
        for weight in module.parameters():
            nn.init.normal_(weight, std=weight.shape[-1] ** -0.5)
    try:
        with torch.inference_mode():
            together = module(rows)
            apart = torch.cat([module(rows[0, :1]), module(rows[0, 1:])])
    except (RuntimeError, TypeError, ValueError, IndexError, AttributeError):
        return False  # it takes more than one tensor, or other axes
    if not isinstance(together, torch.Tensor) or together.shape[:2] != rows.shape[:2]:
        return False
    # Products of one row and of two are rounded differently.
    size = float(apart.float().abs().mean()) + torch.finfo(torch.float32).tiny
    return torch.allclose(together[0].float(), apart.float(), rtol=0.05, atol=0.05 * size)
