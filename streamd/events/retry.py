"""When to try again to deliver: one policy for every sink, a wait of its own for every target."""

from __future__ import annotations

import random
import time
from collections.abc import Callable

from streamd.flow.backoff import Backoff


class RetryPolicy:
    """Keeps the waits of a sink's targets apart, so that one that is down does not slow the others. One thread.

    Args:
        initial_s: first wait after a failure, seconds; the following ones double.
        max_s: longest wait, seconds.
        clock: monotonic seconds; injected by tests.
        random_source: of the jitter; injected by tests.
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
        """By target: its backoff, and when it may be tried again."""

    def failed(self, target: str, *, retry_after_s: float | None = None) -> float:
        """Notes a failure.

        Args:
            target: e.g. a host.
            retry_after_s: what the target itself asked for; kept to where it is longer, up to an hour.

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
        """The target is well: its next failure begins with the shortest wait."""
        self._failing.pop(target, None)

    def wait_s(self, target: str) -> float:
        """Seconds until `target` may be tried; 0 for now."""
        found = self._failing.get(target)
        return max(0.0, found[1] - self._clock()) if found is not None else 0.0

    def attempts(self, target: str) -> int:
        """Failures in a row."""
        found = self._failing.get(target)
        return found[0].attempts if found is not None else 0
