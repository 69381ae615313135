"""Bounds the requests that a server gets at once, by how long its answers take."""

START = 8
"""Requests at once at the beginning."""
QUICK_SECONDS = 10.0
"""With a shorter mean latency the limit grows four times, otherwise twice."""


class RequestPace:
    """The limit of one server. A round is as many answers as the limit, all to requests that were
    sent in it. Its throughput is the limit divided by their mean latency (Little's law), so that
    requests which were sent in a burst, or before the round, do not distort it. The next limit is
    several times larger at first, then larger by an eighth, as long as it brings at least half of
    the throughput that it should; otherwise the limit before returns. An overloaded server gets
    half as many."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._fast = True
        self._best = (0, 0.0)
        """The largest limit that was worth it, and its answers a second."""
        self._cut_at = 0.0
        self._begin(START, 0.0)

    def _begin(self, limit: int, now: float) -> None:
        self.limit = self._left = max(1, min(limit, self._most))
        self._began, self._latency = now, 0.0

    def succeeded(self, sent: float, now: float) -> None:
        """Count the answer to a request that was sent at a time."""
        if sent < self._began:
            return
        self._left, self._latency = self._left - 1, self._latency + now - sent
        if self._left > 0:
            return
        size, (before, best) = self.limit, self._best
        rate = size * size / max(self._latency, 1e-9)
        if size > before > 0 and rate < best * (1 + (size / before - 1) / 2):
            self._fast = False
            self._begin(before, now)
        else:
            self._best = (size, rate)
            times = 4 if self._latency < QUICK_SECONDS * size else 2
            self._begin(size * times if self._fast else size + max(1, size // 8), now)

    def overloaded(self, sent: float, now: float) -> None:
        """Count an answer that the server is overloaded. Requests that were sent before the last
        decrease do not count again."""
        if sent >= self._cut_at:
            self._fast, self._cut_at, self._best = False, now, (0, 0.0)
            self._begin(self.limit // 2, now)
