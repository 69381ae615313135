"""Decides how many requests a server gets at once, by what it answers."""

START = 16
"""Requests at once at the beginning."""
WORTH = 1.1
"""More requests at once must bring this many times the answers a second."""
FADING = 0.95
"""Factor on the best rate after each round, because a server may become slower."""


class RequestPace:
    """The limit of one server: additive increase, multiplicative decrease.

    A round is as many answers as the limit at its begin. While the answers a second grow with the
    limit, it grows by one per answer; afterwards by one per round, and it returns to the best limit
    if that brings nothing. An overloaded server gets half as many.
    """

    def __init__(self, most: int) -> None:
        self._most = float(most)
        self.limit = float(min(START, most))
        self._fast = True
        self._cut_at = 0.0
        self._best = (0.0, self.limit)
        """Best answers a second so far, and the limit of that round."""
        self._round = (0.0, self.limit, 0)
        """Begin of the round, its limit, and its answers so far."""

    def succeeded(self, now: float) -> None:
        """Count an answer."""
        began, limit, answers = self._round
        self._round = (began or now, limit, answers + 1)
        self.limit = min(self._most, self.limit + (1 if self._fast else 1 / self.limit))
        if answers + 1 < limit:
            return
        rate = limit / (now - began) if began and now > began else 0.0
        best, best_limit = self._best
        if rate >= WORTH * best or limit <= best_limit:
            self._best = (max(rate, best * FADING), limit)
        elif began:
            self._fast = False
            self._best = (best * FADING, best_limit)
            self.limit = max(best_limit, 1.0)
        self._round = (now, self.limit, 0)

    def overloaded(self, sent: float, now: float) -> None:
        """Count an answer that the server is overloaded. Requests that were sent before the last
        decrease do not count again."""
        if sent >= self._cut_at:
            self._fast, self._cut_at = False, now
            self.limit = max(1.0, self.limit / 2)
            self._best = (0.0, self.limit)
            self._round = (now, self.limit, 0)
