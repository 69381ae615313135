"""Imports transformers without what a process that runs one half alone hardly ever uses.

Torch's compiler, its tensors that lie on many machines and scipy's optimizer are a third of what
that import takes. They are imported along because the compiler marks functions, a class may be
asked after, or a loss may be computed. So a stand-in takes the place of such a module. It notes
marks, and answers for a few functions, which import their module once they are called. Whoever
asks it for anything else gets the module itself: the stand-in steps aside for good, and the marks
are made. Tensors of many machines are left out as in a torch that was built without them. Nothing
here may be called in a process that is not our own.
"""

import functools
import importlib
import sys
import threading
from collections.abc import Callable, Mapping
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import FunctionType, ModuleType
from typing import Any

COMPILER = "torch._dynamo"
MARKS = ("allow_in_graph", "assume_constant_result")
"""Functions of the compiler that mark another one, and return it."""
ON_CALL: Mapping[str, tuple[str, ...]] = {
    COMPILER: (),
    f"{COMPILER}.utils": ("is_compile_supported",),
    f"{COMPILER}._trace_wrapped_higher_order_op": ("TransformGetItemToIndex",),
    "scipy.optimize": ("linear_sum_assignment",),
}
"""Module → what is imported from it long before it is called, if ever."""
_lock = threading.RLock()


def import_transformers() -> None:
    """Import what every model of transformers needs, and as little else as can be."""
    import torch

    if "transformers.modeling_utils" not in sys.modules:
        # Where a machine is alone, only the question after it is left.
        torch.distributed.is_available = lambda: False
        for name in ON_CALL:
            _stand_in(name)
        sys.meta_path.insert(0, Parts())
    for name in ("modeling_utils", "masking_utils", "generation.utils", "processing_utils"):
        importlib.import_module(f"transformers.{name}")


class StandIn(ModuleType):
    """A module that is not imported yet. `marked` are marks that it was asked to make."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__path__: list[str] = []
        self.__spec__ = ModuleSpec(name, None, is_package=True)
        self.marked: list[tuple[str, Any]] = []
        for function in ON_CALL[name]:
            setattr(self, function, _on_call(name, function))
        if name == COMPILER:
            for mark in MARKS:
                setattr(self, mark, functools.partial(self._mark, mark))
            self.disable = self._disable

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # what the import system asks after
            raise AttributeError(name)
        return getattr(_true(self.__name__), name)

    def _mark(self, mark: str, function: Any) -> Any:
        self.marked.append((mark, function))
        return function

    def _disable(self, function: Any = None, *given: Any, **options: Any) -> Any:
        """Return a function that is never compiled: until there is a compiler, the function."""
        if function is None:
            return lambda later: self._disable(later, *given, **options)
        if not isinstance(function, FunctionType):
            return _true(COMPILER).disable(function, *given, **options)
        kept: list[Callable[..., Any]] = []

        @functools.wraps(function)
        def uncompiled(*args: Any, **named: Any) -> Any:
            if not kept and isinstance(sys.modules.get(COMPILER), StandIn):
                return function(*args, **named)
            if not kept:
                kept.append(_true(COMPILER).disable(function, *given, **options))
            return kept[0](*args, **named)

        return uncompiled


class Parts:
    """Finds parts of the compiler for which nothing stands in: the compiler itself has them."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name.startswith(f"{COMPILER}.") and isinstance(sys.modules[COMPILER], StandIn):
            return ModuleSpec(name, self)  # type: ignore[arg-type]
        return None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module: ModuleType = _true(spec.name)
        self._spec = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        vars(module)["__spec__"] = self._spec  # it was executed under its own


def _stand_in(name: str) -> None:
    """Put a stand-in in the place of a module that is there and was not imported yet."""
    parent, _, child = name.rpartition(".")
    if name in sys.modules or not _is_there(name):
        return
    sys.modules[name] = module = StandIn(name)
    if parent in sys.modules:
        setattr(sys.modules[parent], child, module)


def _is_there(name: str) -> bool:
    # Of a part of a module that is a stand-in itself, its file would have to be looked for.
    if name.startswith(f"{COMPILER}."):
        return isinstance(sys.modules.get(COMPILER), StandIn)
    try:
        return find_spec(name) is not None
    except ModuleNotFoundError:
        return False


def _on_call(name: str, function: str) -> Callable[..., Any]:
    def called(*args: Any, **named: Any) -> Any:
        return getattr(_true(name), function)(*args, **named)

    called.__name__ = called.__qualname__ = function
    return called


def _true(name: str) -> Any:
    """Return the module itself, which is imported now if it was not yet."""
    root = COMPILER if name.startswith(COMPILER) else name
    with _lock:
        standing = sys.modules.get(root)
        if isinstance(standing, StandIn):
            for each in [each for each in sys.modules if f"{each}.".startswith(f"{root}.")]:
                parent, _, child = each.rpartition(".")
                if isinstance(sys.modules.pop(each), StandIn) and parent in sys.modules:
                    vars(sys.modules[parent]).pop(child, None)
            module = importlib.import_module(root)
            for mark, function in standing.marked:
                getattr(module, mark)(function)
        return importlib.import_module(name)
