"""Gives a half the pieces of the other half that it turns out to need. Knows neither which they are
nor what they are for."""

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from artifacts.schema import Part
from stages.models.halves.absent import NeedsWeights
from stages.models.halves.boundary import piece_of
from stages.models.halves.classes import skeleton_of

Result = TypeVar("Result")


class Held:
    """A half that is loaded again, with the pieces that it lacks, when its use shows that it lacks
    some."""

    def __init__(
        self, keep: Part, load: Callable[[tuple[str, ...]], Any], pieces: Iterable[str] = ()
    ) -> None:
        self._keep = keep
        self._load = load
        self.pieces = tuple(pieces)
        """Paths of the other half's pieces that are loaded as well."""
        self.model = load(self.pieces)

    def use(self, function: Callable[[Any], Result]) -> Result:
        """Return the result of `function` for the half, loaded again as often as it lacks a
        piece."""
        while True:
            if self.model is None:  # loading it again failed, and whoever called goes on
                self.model = self._load(self.pieces)
            try:
                return function(self.model)
            except NeedsWeights as error:
                self.pieces = (*self.pieces, self._new_piece(error))
            self.model = None  # before the next is there: both may not fit
            self.model = self._load(self.pieces)

    def _new_piece(self, error: NeedsWeights) -> str:
        config, cls = self.model.config, type(self.model).__mro__[1]
        skeleton = skeleton_of(config, cls)
        if self._keep == "whole":
            raise error
        piece = piece_of(skeleton, error, self._keep)
        if piece in self.pieces:
            raise error
        return piece
