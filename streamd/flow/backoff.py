"""How long to wait before the next attempt: for a stream that failed, and for a worker that died."""

from __future__ import annotations

import random


class Backoff:
    """Exponential waits with jitter, so that a hundred cameras behind one switch do not return in one burst.

    Args:
        initial_s: first wait, seconds.
        max_s: longest wait, seconds.
        random_source: injected by tests.
    """

    def __init__(self, initial_s: float, max_s: float, random_source: random.Random | None = None) -> None:
        self._initial, self._max = initial_s, max_s
        self._random = random_source or random.Random()  # noqa: S311 - jitter, not a secret
        self.attempts = 0

    def change(self, initial_s: float, max_s: float) -> None:
        """Changes both delays, in seconds; previous attempts still count."""
        self._initial, self._max = initial_s, max_s

    def next(self, *, longest: bool = False) -> float:
        """The next wait in seconds: between half and all of the doubled bound, or of the longest one."""
        bound: float = self._max if longest else min(self._max, self._initial * 2 ** min(self.attempts, 32))
        self.attempts += 1
        return bound * (0.5 + 0.5 * self._random.random())

    def shorten(self) -> float:
        """The latest wait was cut short: how long to wait still, at most the first wait. The attempt that follows does
        not count."""
        self.attempts = max(0, self.attempts - 1)
        return min(self._initial, self._max) * self._random.random()

    def reset(self) -> None:
        """Starts over."""
        self.attempts = 0
