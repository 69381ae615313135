"""How much memory this process held at the most, looked at oftener than a stage looks."""

import threading
import time

from stages.process.memory import anonymous_bytes
from stages.process.outcome import StageOutcome


def taken(outcome: StageOutcome, device: str) -> int:
    """The most that a stage's process held: of a CPU above its imports, of a GPU above what was
    held before."""
    if device == "cpu":
        return int(outcome.peak_host_bytes - outcome.notes["loaded_bytes"])
    return outcome.peak_device_bytes - outcome.baseline_before_bytes


class Peak:
    """The most that this process held since it was made, looked at every so many seconds."""

    def __init__(self, every: float = 0.001) -> None:
        self._every = every
        self._base = self._most = anonymous_bytes()
        threading.Thread(target=self._follow, daemon=True).start()

    def bytes(self) -> int:
        """Above what it held at first."""
        return max(self._most, anonymous_bytes()) - self._base

    def _follow(self) -> None:
        while True:
            self._most = max(self._most, anonymous_bytes())
            time.sleep(self._every)
