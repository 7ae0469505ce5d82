"""How much a classifier may do: crops a second, or a share of the time."""

from __future__ import annotations

MAX_PAUSE_S = 60.0


class Budget:
    """Crops a second are spent when a crop is taken; a share of the time is kept by pauses after each batch.

    `admit` is for the threads that take crops, with a lock held; `pause` for the classifier's.

    Args:
        value: crops a second, or a share such as 5%.
    """

    def __init__(self, value: float | str) -> None:
        self._share = float(value.rstrip("%")) / 100 if isinstance(value, str) else None
        self._rate = value if isinstance(value, float) else 0.0
        self._most = max(1.0, self._rate)
        self._left = self._most
        self._at: float | None = None

    def admit(self, now: float, *, first: bool) -> bool:
        """Spends one crop; False if there is none left.

        Args:
            now: monotonic seconds.
            first: the object was never classified: the last half of the budget is kept for such.
        """
        if self._share is not None:
            return True
        if self._at is not None:
            self._left = min(self._most, self._left + (now - self._at) * self._rate)
        self._at = now
        if self._left < 1 or (not first and self._left < self._most / 2):
            return False
        self._left -= 1
        return True

    def pause(self, worked_s: float) -> float:
        """Seconds to rest after a batch that took `worked_s`."""
        if self._share is None:
            return 0.0
        return min(MAX_PAUSE_S, worked_s * (1 / self._share - 1))
