"""Imports transformers without the modules that a process with one half hardly ever uses.

Torch's compiler and sympy, its distributed tensors, torchvision's models and scipy's optimizer take
more than a third of that import. They are imported only because the compiler marks functions, a
class appears in an `isinstance` check, or a loss might be computed. How they are deferred:

1. A stand-in takes the place of such a module. It records the compiler's marks, and has a few
   functions that import the module when they are called.
2. Any other access to the stand-in imports the real module. The stand-in then steps aside for good
   and the recorded marks are applied.
3. Distributed tensors are left out as in a torch built without them.
4. The list of what transformers exports is read from a stored file.

Call nothing here in a process that another program owns.
"""

import contextlib
import functools
import importlib
import itertools
import operator
import os
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

from artifacts.errors import PenstockError, UsageError
from artifacts.files import read_kept, write_json
from artifacts.keys import digest_of
from artifacts.user_folders import user_cache

LISTED = ("transformers", "models")
"""The folder whose list is kept: all models."""
FORMAT = 1

Structure = dict[frozenset[str], dict[str, set[str]]]
"""Packages that are needed → module → names that it has where they are there."""


def cache_structure(spec: ModuleSpec | None) -> ModuleSpec | None:
    """Return the specification of `transformers.utils.import_utils`, whose list is kept once that
    is imported."""
    if spec is None or spec.loader is None or (source := spec.origin) is None:
        return spec
    execute = spec.loader.exec_module

    def executed(module: ModuleType) -> None:
        execute(module)
        name = "define_import_structure"
        setattr(module, name, with_cached_structure(getattr(module, name), source))

    spec.loader.exec_module = executed  # type: ignore[method-assign]
    return spec


def with_cached_structure(
    define: Callable[..., Structure], source: str
) -> Callable[..., Structure]:
    """Return transformers' own function, of that source file, which looks into the files of models
    only where any of them is not as it was before."""
    known: list[Any] = []

    def defined(path: Any, prefix: str | None = None) -> Structure:
        folder = Path(path)
        folder = folder.parent if folder.is_file() else folder
        if folder.parts[-2:] != LISTED:
            return define(path, prefix)
        if not known:
            files = [*_files(folder), *_state(source)]
            known.extend(_structure(folder, digest_of(sorted(files)), lambda: define(path)))
        before = f"{prefix}." if prefix else ""
        return {
            frozenset(needed): {before + module: set(names) for module, names in modules.items()}
            for needed, modules in known
        }

    return defined


def _structure(folder: Path, state: str, define: Callable[[], Structure]) -> list[Any]:
    """Return the list as it was kept of files in that state, else as it is made now, which is
    kept."""
    name = f"{digest_of(str(folder))[:16]}.json"
    with contextlib.suppress(UsageError):  # a user without a home
        found = read_kept(user_cache() / "imports" / name, FORMAT) or {}
        made = found.get("structure")
        if found.get("state") == state and found.get("digest") == digest_of(made):
            return list(made or ())
    made = [
        [sorted(needed), {module: sorted(names) for module, names in modules.items()}]
        for needed, modules in define().items()
    ]
    with contextlib.suppress(PenstockError):  # a disk that is full
        found = {"format": FORMAT, "state": state, "digest": digest_of(made), "structure": made}
        write_json(user_cache() / "imports" / name, found)
    return made


def _files(folder: Path | str) -> Iterator[list[str | int]]:
    """Yield each file that is looked into, with its time and size."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir() and entry.name != "__pycache__":
                yield from _files(entry.path)
            elif entry.name.endswith(".py"):
                yield from _state(entry.path)


def _state(path: str) -> Iterator[list[str | int]]:
    state = os.stat(path)
    yield [path, state.st_mtime_ns, state.st_size]


COMPILER = "torch._dynamo"
MARKS = ("allow_in_graph", "assume_constant_result")
"""Functions of the compiler that mark another one, and return it."""
ALGEBRA = "torch.fx.experimental.symbolic_shapes"
ANSWERS: Mapping[str, Callable[..., Any]] = {
    **dict.fromkeys(
        (
            "expect_true",
            "guard_or_false",
            "guard_or_true",
            "guard_size_oblivious",
            "statically_known_true",
        ),
        lambda holds, *_: holds,
    ),
    "is_nested_int": lambda size: False,
    "sym_eq": lambda one, other: _listed(one) == _listed(other),
    "sym_and": lambda *holds: functools.reduce(operator.and_, holds),
    "sym_or": lambda *holds: functools.reduce(operator.or_, holds),
}
"""Functions of the algebra → what they say of sizes and conditions that are numbers and bools."""
ON_CALL: Mapping[str, tuple[str, ...]] = {
    COMPILER: (),
    f"{COMPILER}.utils": ("is_compile_supported",),
    f"{COMPILER}._trace_wrapped_higher_order_op": ("TransformGetItemToIndex",),
    ALGEBRA: (
        *ANSWERS,
        "guarding_hint_or_throw",
        "has_free_unbacked_symbols",
        "has_guarding_hint",
    ),
    "sympy": (),
    "scipy.optimize": ("linear_sum_assignment",),
    "torchvision.models": (),
    "torchvision.datasets": (),
    "boto3": (),  # of a command of accelerate's, where it is installed
}
"""Module → what is imported from it long before it is called, if ever."""
TRUE_NAMES = ("__all__", "__version__")
"""Names with underscores that nobody but a user of a module asks for."""
STRUCTURE = "transformers.utils.import_utils"
_lock = threading.RLock()


def defer() -> None:
    """See to it that transformers is imported without what can wait, whoever imports it."""
    if not any(isinstance(finder, Deferring) for finder in sys.meta_path):
        sys.meta_path.insert(0, Deferring())


def import_transformers() -> None:
    """Import what every model of transformers needs, and as little else as can be."""
    defer()
    for name in ("modeling_utils", "masking_utils", "generation.utils", "processing_utils"):
        importlib.import_module(f"transformers.{name}")


class LazyModule(ModuleType):
    """A module that is not imported yet. `marked` holds the compiler marks that it has recorded."""

    def __init__(self, spec: ModuleSpec) -> None:
        name = spec.name
        super().__init__(name)
        self.__spec__, self.__loader__ = spec, spec.loader
        self.__file__ = spec.origin
        if spec.submodule_search_locations is not None:
            self.__path__ = spec.submodule_search_locations
        self.marked: list[tuple[str, Any]] = []
        for function in ON_CALL[name]:
            setattr(self, function, _on_call(name, function))
        if name == COMPILER:
            for mark in MARKS:
                setattr(self, mark, functools.partial(self._mark, mark))
            self.disable = self._disable

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name not in TRUE_NAMES:  # whoever looks at all modules
            raise AttributeError(name)
        if (self.__name__, name) == ("sympy", "Basic") and _accessed_from("torch._prims_common"):
            return PlaceholderType
        module = _true(self.__name__)
        if name == "__all__":  # what a star is given
            return getattr(module, name, [each for each in vars(module) if each[0] != "_"])
        return getattr(module, name)

    def _mark(self, mark: str, function: Any) -> Any:
        self.marked.append((mark, function))
        return function

    def _disable(self, function: Any = None, *given: Any, **options: Any) -> Any:
        """Return a function that is never compiled: until there is a compiler, the function."""
        if function is None:
            return lambda later: self._disable(later, *given, **options)
        if not isinstance(function, FunctionType):
            return _true(COMPILER).disable(function, *given, **options)
        with_cached_structure: list[Callable[..., Any]] = []

        @functools.wraps(function)
        def uncompiled(*args: Any, **named: Any) -> Any:
            if not with_cached_structure and isinstance(sys.modules.get(COMPILER), LazyModule):
                return function(*args, **named)
            if not with_cached_structure:
                with_cached_structure.append(_true(COMPILER).disable(function, *given, **options))
            return with_cached_structure[0](*args, **named)

        return uncompiled


class PlaceholderType:
    """Stands for symbolic expressions where torch checks whether a number is one: none exists
    yet."""


class Deferring:
    """Hooks into imports: installs stand-ins before transformers is imported, and finds submodules
    that no stand-in covers."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name == "transformers":
            _stand_in_for_all()
        if name == STRUCTURE:
            return cache_structure(PathFinder.find_spec(name, path))
        root = _root(name)
        if root == name or not isinstance(sys.modules.get(root), LazyModule):
            return None
        if (found := PathFinder.find_spec(name, path)) is None:
            return None
        part = ModuleSpec(name, self, origin=found.origin)  # type: ignore[arg-type]
        part.submodule_search_locations = found.submodule_search_locations
        return part

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module: ModuleType = _true(spec.name)
        self._spec = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        vars(module)["__spec__"] = self._spec  # it was executed under its own


def _stand_in_for_all() -> None:
    import torch

    # Where a machine is alone, only the question after it is left.
    torch.distributed.is_available = lambda: False
    for name in ON_CALL:
        _stand_in(name)


def _stand_in(name: str) -> None:
    """Put a stand-in in the place of a module that is there and was not imported yet."""
    parent, _, child = name.rpartition(".")
    standing = name == _root(name) or isinstance(sys.modules.get(_root(name)), LazyModule)
    if name in sys.modules or not standing or (spec := _spec_of(name)) is None:
        return
    sys.modules[name] = module = LazyModule(spec)
    if parent in sys.modules:
        setattr(sys.modules[parent], child, module)


def _spec_of(name: str) -> ModuleSpec | None:
    """Return what tells where a module is, without importing what it belongs to."""
    path, spec = None, None
    for whole in itertools.accumulate(name.split("."), "{}.{}".format):
        if (spec := PathFinder.find_spec(whole, path)) is None:
            return None
        path = spec.submodule_search_locations
    return spec


def _root(name: str) -> str:
    """Return the outermost module with a stand-in that this one is, or belongs to; else itself."""
    return next((each for each in ON_CALL if f"{name}.".startswith(f"{each}.")), name)


def _on_call(name: str, function: str) -> Callable[..., Any]:
    def called(*args: Any, **named: Any) -> Any:
        if function in ANSWERS and not named and _is_plain(args):
            return ANSWERS[function](*args)
        return getattr(_true(name), function)(*args, **named)

    called.__name__ = called.__qualname__ = function
    return called


def _accessed_from(module: str) -> bool:
    """Return whether a stand-in's attribute is asked for in that module."""
    return bool(sys._getframe(2).f_globals.get("__name__") == module)


def _is_plain(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return all(map(_is_plain, value))
    return type(value) in (bool, int)


def _listed(value: Any) -> Any:
    return list(map(_listed, value)) if isinstance(value, tuple | list) else value


def _true(name: str) -> Any:
    """Return the module itself, which is imported now if it was not yet."""
    root = _root(name)
    with _lock:
        standing = sys.modules.get(root)
        if isinstance(standing, LazyModule):
            for each in [each for each in sys.modules if f"{each}.".startswith(f"{root}.")]:
                parent, _, child = each.rpartition(".")
                if isinstance(sys.modules.pop(each), LazyModule) and parent in sys.modules:
                    vars(sys.modules[parent]).pop(child, None)
            module = importlib.import_module(root)
            for mark, function in standing.marked:
                getattr(module, mark)(function)
        return importlib.import_module(name)
