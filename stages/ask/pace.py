"""Bounds the requests that a server gets at once, by its answers."""

START = 16
"""Requests at once at the beginning."""
WORTH = 1.1
"""More requests at once must bring this many times the answers a second."""


class RequestPace:
    """The limit of one server. A round is as many answers as the limit at its begin. While the
    answers a second grow with the limit, it grows by one per answer, afterwards by one per round.
    An overloaded server gets half as many."""

    def __init__(self, most: int) -> None:
        self._most = float(most)
        self.limit = float(min(START, most))
        self._fast = True
        self._cut_at = self._began = self._rate = 0.0
        """Times of the last decrease and of the begin of the round; answers a second before it."""
        self._size = self._left = self.limit

    def succeeded(self, now: float) -> None:
        """Count an answer."""
        self.limit = min(self._most, self.limit + (1.0 if self._fast else 1.0 / self.limit))
        self._left -= 1
        if self._left <= 0:
            rate = self._size / (now - self._began) if now > self._began > 0 else 0.0
            if self._began and rate < WORTH * self._rate:
                self._fast = False
            self._began, self._rate = now, rate
            self._size = self._left = self.limit

    def overloaded(self, sent: float, now: float) -> None:
        """Count an answer that the server is overloaded. Requests that were sent before the last
        decrease do not count again."""
        if sent >= self._cut_at:
            self._fast, self._cut_at = False, now
            self.limit = max(1.0, self.limit / 2)
