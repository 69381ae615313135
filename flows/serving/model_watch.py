"""Hears whether the model of a server is still the one that its answers are filed under."""

import asyncio

from artifacts.errors import ModelChanged, PenstockError


class ModelWatch:
    """The files of a service's models, as far as its halves find them changed when they load."""

    def __init__(self) -> None:
        self.changed = asyncio.Event()
        """Set when nothing of the service may be answered any more."""
        self.error: ModelChanged | None = None
        """The change that was found."""
        self.was_loaded = False
        """Whether a half was loaded from the files that the service was planned with."""

    def loaded(self) -> None:
        """Note that a half was loaded."""
        self.was_loaded = True

    def failed(self, error: PenstockError) -> bool:
        """Note that a half could not be loaded. Return whether its model changed."""
        if not isinstance(error, ModelChanged):
            return False
        self.error = self.error or error
        self.changed.set()
        return True
