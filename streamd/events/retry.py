"""When to retry a delivery: one policy for all sinks, a separate delay for every target."""

from __future__ import annotations

import random
import time
from collections.abc import Callable

from streamd.flow.backoff import Backoff


class RetryPolicy:
    """Keeps the delays of a sink's targets separate, so that one that is down does not slow the others. One thread.

    Args:
        initial_s: first delay after a failure, seconds; the following ones double.
        max_s: longest delay, seconds.
        clock: monotonic seconds; injected by tests.
        random_source: source of the jitter; injected by tests.
    """

    def __init__(
        self,
        initial_s: float = 0.5,
        max_s: float = 60.0,
        *,
        clock: Callable[[], float] = time.monotonic,
        random_source: random.Random | None = None,
    ) -> None:
        self._initial_s, self._max_s = initial_s, max_s
        self._clock, self._random = clock, random_source
        self._failing: dict[str, tuple[Backoff, float]] = {}
        """By target: its backoff, and when to try again."""

    def failed(self, target: str, *, retry_after_s: float | None = None) -> float:
        """Records a failure.

        Args:
            target: e.g. a host.
            retry_after_s: delay that the target itself requested; used if it is longer, up to an hour.

        Returns:
            Seconds until the target may be tried again.
        """
        backoff, _ = self._failing.get(target) or (Backoff(self._initial_s, self._max_s, self._random), 0.0)
        wait = backoff.next()
        if retry_after_s is not None:
            wait = max(wait, min(retry_after_s, 3600.0))
        self._failing[target] = backoff, self._clock() + wait
        return wait

    def succeeded(self, target: str) -> None:
        """The target works: its next failure starts with the shortest delay."""
        self._failing.pop(target, None)

    def wait_s(self, target: str) -> float:
        """Seconds until `target` may be tried; 0 for now."""
        found = self._failing.get(target)
        return max(0.0, found[1] - self._clock()) if found is not None else 0.0

    def attempts(self, target: str) -> int:
        """Consecutive failures."""
        found = self._failing.get(target)
        return found[0].attempts if found is not None else 0
