"""Remembers that a process could not be started, and when it is tried again; starts none.

Whoever is killed while it works is started again at once, as often as it happens. One that ends
before it is ready will most likely do so again: after a few times requests are refused for a while.
"""

import time

from artifacts.errors import PenstockError
from flows.serving.model_watch import ModelWatch
from flows.serving.refusals import Refused, unavailable

STARTS = 3
"""Times in a row that a process ends before it is ready, until requests are refused."""
AGAIN_SECONDS = 10.0
"""After so long it is tried to start it again."""


class Setbacks:
    """The failed starts of one process."""

    def __init__(self, name: str, model: ModelWatch) -> None:
        self._name = name
        self._model = model
        self._failed = 0
        self._again_at = 0.0
        self._why: PenstockError | None = None

    @property
    def wait(self) -> float:
        """Return the seconds until it may be started again."""
        return max(0.0, self._again_at - time.monotonic())

    @property
    def refusal(self) -> Refused | None:
        """Return why requests are refused now; None where they are not."""
        if self._why is None or not self.wait:
            return None
        error = f"the {self._name} half cannot be had: {self._why.message}"
        return unavailable(error, self._why.hint, retry=self.wait)

    def started(self) -> None:
        """Hear that it is ready."""
        self._failed, self._why, self._again_at = 0, None, 0.0
        self._model.loaded()

    def failed(self, error: PenstockError, *, hopeless: bool = False) -> None:
        """Hear that it ended before it was ready; `hopeless`, if that will be so until something
        else changes."""
        self._failed += 1
        hopeless = self._model.failed(error) or hopeless
        if hopeless or self._failed >= STARTS:
            self._why, self._again_at = error, time.monotonic() + AGAIN_SECONDS
