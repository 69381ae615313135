"""Imports transformers without the modules that a process with one half hardly ever uses.

Torch's compiler and sympy, its distributed tensors, torchvision's models and scipy's optimizer take
more than a third of that import. They are imported only because the compiler marks functions, a
class appears in an `isinstance` check, or a loss might be computed. How they are deferred:

1. A `LazyModule` takes the place of such a module. It records the compiler's marks, and has a few
functions that import the module when they are called.

2. Any other access to the `LazyModule` imports the real module. It replaces the `LazyModule`, and
the recorded marks are applied to it.

3. Distributed tensors are left out as in a torch built without them.

4. The list of what transformers exports is read from a stored file.

Call nothing here in a process that another program owns.

The fork server asks CUDA nothing about its cards while it imports for stages on a GPU. Some
libraries ask CUDA when they are imported. A process that has asked cannot fork stages that use a
card, so those imports are left to the stages.
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

from artifacts.digests import digest_of
from artifacts.disk.files import read_kept, write_json
from artifacts.disk.paths import machine_cache
from artifacts.errors import PenstockError

LISTED = ("transformers", "models")
"""Folder whose list is cached: all models."""
FORMAT = 1

Structure = dict[frozenset[str], dict[str, set[str]]]
"""Required packages → module → names that it exports if they are installed."""


def cache_structure(spec: ModuleSpec | None) -> ModuleSpec | None:
    """Make `transformers.utils.import_utils`, found by `spec`, use a cached structure."""
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
    """Wrap transformers' own function, from the file `source`. It reads the model files only if one
    of them has changed."""
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
    """Return the cached structure for files in this state. If there is none, make and store it."""
    name = f"{digest_of(str(folder))[:16]}.json"
    cached = read_kept(machine_cache() / "imports" / name, FORMAT) or {}
    structure = cached.get("structure")
    if cached.get("state") == state and cached.get("digest") == digest_of(structure):
        return list(structure or ())
    structure = [
        [sorted(needed), {module: sorted(names) for module, names in modules.items()}]
        for needed, modules in define().items()
    ]
    with contextlib.suppress(PenstockError):  # a full disk
        cached = {
            "format": FORMAT,
            "state": state,
            "digest": digest_of(structure),
            "structure": structure,
        }
        write_json(machine_cache() / "imports" / name, cached)
    return structure


def _files(folder: Path | str) -> Iterator[list[str | int]]:
    """Yield each file that the structure depends on, with its time and size."""
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
"""Functions of the compiler that mark a function and return it."""
SYMBOLIC_SHAPES = "torch.fx.experimental.symbolic_shapes"
PLAIN_RESULTS: Mapping[str, Callable[..., Any]] = {
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
"""Functions of symbolic shapes → their results for plain numbers and bools."""
ON_CALL: Mapping[str, tuple[str, ...]] = {
    COMPILER: (),
    f"{COMPILER}.utils": ("is_compile_supported",),
    f"{COMPILER}._trace_wrapped_higher_order_op": ("TransformGetItemToIndex",),
    SYMBOLIC_SHAPES: (
        *PLAIN_RESULTS,
        "guarding_hint_or_throw",
        "has_free_unbacked_symbols",
        "has_guarding_hint",
    ),
    "sympy": (),
    "scipy.optimize": ("linear_sum_assignment",),
    "torchvision.models": (),
    "torchvision.datasets": (),
    "boto3": (),  # for a command of accelerate, if that is installed
}
"""Deferred module → functions that other modules import from it at import time and rarely call."""
SPECIAL_NAMES = ("__all__", "__version__")
"""Names with underscores whose access means that the module is used."""
STRUCTURE = "transformers.utils.import_utils"
_lock = threading.RLock()


def defer() -> None:
    """Install the import hook that defers modules of transformers for all later imports."""
    if not any(isinstance(finder, Deferring) for finder in sys.meta_path):
        sys.meta_path.insert(0, Deferring())


def import_transformers() -> None:
    """Import what every model of transformers needs, and little else."""
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
        if (
            name.startswith("__") and name not in SPECIAL_NAMES
        ):  # code that inspects every module, such as `inspect`
            raise AttributeError(name)
        is_number = (self.__name__, name) == ("sympy", "Basic")
        if is_number and sys._getframe(1).f_globals.get("__name__") == "torch._prims_common":
            return PlaceholderType
        module = _real_module(self.__name__)
        if name == "__all__":  # for `import *`
            return getattr(module, name, [key for key in vars(module) if key[0] != "_"])
        return getattr(module, name)

    def _mark(self, mark: str, function: Any) -> Any:
        self.marked.append((mark, function))
        return function

    def _disable(self, function: Any = None, *given: Any, **options: Any) -> Any:
        """Mark a function as never compiled; until the compiler is imported, it is wrapped."""
        if function is None:
            return lambda later: self._disable(later, *given, **options)
        if not isinstance(function, FunctionType):
            return _real_module(COMPILER).disable(function, *given, **options)

        @functools.cache
        def real() -> Any:
            return _real_module(COMPILER).disable(function, *given, **options)

        @functools.wraps(function)
        def uncompiled(*args: Any, **named: Any) -> Any:
            is_lazy = isinstance(sys.modules.get(COMPILER), LazyModule)
            return (function if is_lazy else real())(*args, **named)

        return uncompiled


class PlaceholderType:
    """Stands for symbolic numbers in `isinstance` checks of torch. No object is an instance,
    because none exists before sympy is imported."""


class Deferring:
    """Hooks into imports: installs LazyModules before transformers is imported, and finds
    submodules of deferred modules."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name == "transformers":
            import torch

            # On a single machine torch calls nothing else of this package.
            torch.distributed.is_available = lambda: False
            for deferred in ON_CALL:
                _install_lazy(deferred)
        if name == STRUCTURE:
            return cache_structure(PathFinder.find_spec(name, path))
        root = _root(name)
        if root == name or not isinstance(sys.modules.get(root), LazyModule):
            return None
        if (spec := PathFinder.find_spec(name, path)) is None:
            return None
        part = ModuleSpec(name, self, origin=spec.origin)  # type: ignore[arg-type]
        part.submodule_search_locations = spec.submodule_search_locations
        return part

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module: ModuleType = _real_module(spec.name)
        self._spec = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        vars(module)["__spec__"] = self._spec  # it was executed with its real one


def _install_lazy(name: str) -> None:
    """Put a LazyModule in place of a module that is installed and not yet imported."""
    parent, _, child = name.rpartition(".")
    deferrable = name == _root(name) or isinstance(sys.modules.get(_root(name)), LazyModule)
    if name in sys.modules or not deferrable or (spec := _spec_of(name)) is None:
        return
    sys.modules[name] = module = LazyModule(spec)
    if parent in sys.modules:
        setattr(sys.modules[parent], child, module)


def _spec_of(name: str) -> ModuleSpec | None:
    """Return the specification of a module without importing its parents; None: not installed."""
    path, spec = None, None
    for parent in itertools.accumulate(name.split("."), "{}.{}".format):
        if (spec := PathFinder.find_spec(parent, path)) is None:
            return None
        path = spec.submodule_search_locations
    return spec


def _root(name: str) -> str:
    """Return the deferred module that this module is or belongs to; itself if there is none."""
    return next((deferred for deferred in ON_CALL if f"{name}.".startswith(f"{deferred}.")), name)


def _on_call(name: str, function: str) -> Callable[..., Any]:
    def called(*args: Any, **named: Any) -> Any:
        if function in PLAIN_RESULTS and not named and _is_plain(args):
            return PLAIN_RESULTS[function](*args)
        return getattr(_real_module(name), function)(*args, **named)

    called.__name__ = called.__qualname__ = function
    return called


def _is_plain(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return all(map(_is_plain, value))
    return type(value) in (bool, int)


def _listed(value: Any) -> Any:
    return list(map(_listed, value)) if isinstance(value, tuple | list) else value


def _real_module(name: str) -> Any:
    """Return the real module. Import it if needed, and apply the recorded marks."""
    root = _root(name)
    with _lock:
        lazy = sys.modules.get(root)
        if isinstance(lazy, LazyModule):
            for loaded in [key for key in sys.modules if f"{key}.".startswith(f"{root}.")]:
                parent, _, child = loaded.rpartition(".")
                if isinstance(sys.modules.pop(loaded), LazyModule) and parent in sys.modules:
                    vars(sys.modules[parent]).pop(child, None)
            module = importlib.import_module(root)
            for mark, function in lazy.marked:
                getattr(module, mark)(function)
        return importlib.import_module(name)


_skipped = [False]
STAYS = [False]
"""Whether this process runs one stage after another, so that what one has loaded may be kept."""


@contextlib.contextmanager
def importing_for_forks(device: str) -> Iterator[None]:
    """Make `import_asking_cuda` do nothing in this block, if the stage computes on a GPU."""
    _skipped[0] = device != "cpu"
    try:
        yield
    finally:
        _skipped[0] = False


def import_asking_cuda(*names: str) -> None:
    """Import modules that ask CUDA about its cards, or leave it to the forked stage."""
    if not _skipped[0]:
        for name in names:
            importlib.import_module(name)


def has_used_cuda() -> bool:
    """Return whether this process has used CUDA through torch, after which its forks cannot."""
    torch = sys.modules.get("torch")
    return torch is not None and bool(torch.cuda.is_initialized())
