"""Loads a half again, with the modules of the other half that its code turned out to need."""

import contextlib
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from artifacts.records.model_files import ModelFiles
from artifacts.schema import Part
from stages.memory.oom_retry import release_memory
from stages.models.halves.absent import NeedsWeights
from stages.models.halves.boundary import extra_module_of
from stages.models.halves.model_class import skeleton_of
from stages.models.protocols import Half

Result = TypeVar("Result")


class ReloadableHalf:
    """A half that is reloaded with extra modules when a use shows that they are missing."""

    def __init__(
        self,
        keep: Part,
        load: Callable[[tuple[str, ...]], Half],
        extra_modules: Iterable[str] = (),
        files: ModelFiles | None = None,
        *,
        offloaded: bool = False,
    ) -> None:
        """Load the half. `files` are compared before and after each load. If the half is
        `offloaded`, or keeps its files mapped, they are compared around each call as well."""
        self._keep = keep
        self._load_once = load
        self._files = files or ModelFiles()
        self._offloaded = offloaded
        self._reads_files = False
        self.extra_modules = tuple(extra_modules)
        """Paths of the extra modules that are loaded."""
        self.model = self._load(self.extra_modules)

    def _load(self, extra_modules: tuple[str, ...]) -> Any:
        with self._files.compared():
            model = self._load_once(extra_modules)
        self._reads_files = self._offloaded or self._files.are_mapped()
        return model

    def confirm(self) -> None:
        """Compare the files before publishing results that were computed outside a call. Raises
        ModelChanged."""
        if self._reads_files:
            self._files.check()

    def call(self, function: Callable[[Half], Result]) -> Result:
        """Return the result of `function` for the half. Reload the half as often as an extra module
        is missing. Raises ModelChanged."""
        while True:
            if self.model is None:  # the last reload failed, and the caller continued
                self.model = self._load(self.extra_modules)
            try:
                with self._files.compared() if self._reads_files else contextlib.nullcontext():
                    return function(self.model)
            except NeedsWeights as error:
                self.extra_modules = (*self.extra_modules, self._new_piece(error))
            self.model = None  # free the old one first: both may not fit
            release_memory()  # its hooks may refer to it
            self.model = self._load(self.extra_modules)

    def _new_piece(self, error: NeedsWeights) -> str:
        config, cls = self.model.config, type(self.model).__mro__[1]
        skeleton = skeleton_of(config, cls)
        if self._keep == "whole":
            raise error
        piece = extra_module_of(skeleton, error, self._keep)
        if piece in self.extra_modules:
            raise error
        return piece
