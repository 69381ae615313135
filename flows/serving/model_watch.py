"""Tracks whether a server's model files are still those that its cache keys are based on."""

import asyncio

from artifacts.errors import ModelChanged, PenstockError


class ModelWatch:
    """The model files of a service, and whether its halves found them changed when loading."""

    def __init__(self) -> None:
        self.changed = asyncio.Event()
        """Set when the service must not answer any more."""
        self.error: ModelChanged | None = None
        """The detected change."""
        self.was_loaded = False
        """Whether a half was loaded from the files that the service was planned with."""

    def loaded(self) -> None:
        """Note that a half was loaded."""
        self.was_loaded = True

    def failed(self, error: PenstockError) -> bool:
        """Note that a half failed to load. Return whether its model files changed."""
        if not isinstance(error, ModelChanged):
            return False
        self.error = self.error or error
        self.changed.set()
        return True
