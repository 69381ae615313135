"""Stand-ins for the half that was left out.

They replace the modules and weights of the absent half. A skeleton on the meta device
answers plain attributes (configs, sizes, dtypes), because models read them across the cut. Using a
tensor, or calling anything that computes, raises NeedsWeights.
"""

from types import MethodType
from typing import Any, NoReturn

import torch
from torch import nn

from artifacts.errors import PenstockError


class NeedsWeights(PenstockError, RuntimeError):
    """Raised when a computation needs a module that was left out. `path` names the module, and
    `module` the smallest part that can be loaded to provide it."""

    def __init__(self, path: str, module: str | None = None) -> None:
        super().__init__(
            f"{path} is needed, but belongs to the half of the model that was not loaded",
            hint="Load the other half, the whole model, or this one with "
            f'extra_modules=["{module or path}"]',
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
        attribute = getattr(skeleton, name)
        path = f"{self._path}.{name}"
        if isinstance(attribute, torch.Tensor):
            return self.weight_at(path)
        if isinstance(attribute, nn.Module):
            return self.module_at(attribute, path)
        if isinstance(attribute, MethodType) and attribute.__self__ is skeleton:
            # A method may only return an attribute; run on this object, it raises when it computes.
            return MethodType(attribute.__func__, self)
        return attribute

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
