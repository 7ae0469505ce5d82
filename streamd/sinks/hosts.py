"""Whom a connection belongs to, and how often a host may connect."""

from __future__ import annotations

import ipaddress
import time
from typing import Any

CONNECTIONS_A_SECOND = 2.0
"""In the long run, of one host. Each connection may bring as many subscriptions as one may send at once."""
ABUSE_COSTS = 32
"""A connection that was closed for what it sent counts as this many more."""
MOST_HOSTS = 4096
"""Of which the recent connections are known."""


class Allowance:
    """A token bucket.

    Args:
        burst: what may be used at once.
        rate: what is added per second.
    """

    def __init__(self, burst: float, rate: float) -> None:
        self._burst, self._rate = burst, rate
        self._left, self._at = burst, time.monotonic()

    def use(self, amount: float, *, least: float = float("-inf")) -> bool:
        """Uses `amount`, more than is left if need be; False in that case.

        Args:
            amount: what is used.
            least: what is left is not below this, as far as this use goes.
        """
        now = time.monotonic()
        left = min(self._burst, self._left + (now - self._at) * self._rate)
        self._left = max(left - amount, min(left, least))
        self._at = now
        return self._left >= 0

    def take(self, amount: float) -> bool:
        """Uses `amount` if that much is left."""
        if self.use(amount):
            return True
        self._left += amount
        return False

    @property
    def short(self) -> bool:
        """Whether more has been used than there was."""
        return self._left + (time.monotonic() - self._at) * self._rate < 0

    @property
    def used(self) -> float:
        """What is used at present."""
        return self._burst - self._left - (time.monotonic() - self._at) * self._rate

    @property
    def whole(self) -> bool:
        """Whether nothing is used at present."""
        return self._left + (time.monotonic() - self._at) * self._rate >= self._burst


def host_of(name: Any) -> str:
    """Whom a connection belongs to: an IPv4 address, an IPv6 network of 64 bits (that is what one host is given), or
    nothing for ipc."""
    address = str(name[0]) if name else ""
    if ":" not in address or address.startswith("::ffff:"):
        return address.removeprefix("::ffff:")
    return str(ipaddress.IPv6Network((address.partition("%")[0], 64), strict=False))


class Hosts:
    """The recent connections of each host. For one thread at a time.

    Args:
        burst: connections of one host at once.
        rate: what a host gets back of them, a second.
    """

    def __init__(self, burst: int, rate: float = CONNECTIONS_A_SECOND) -> None:
        self._burst = burst
        self.rate = rate
        self._used: dict[str, Allowance] = {}

    def connected(self, host: str) -> bool:
        """Counts a connection; False if the host has had too many of late."""
        return self._of(host).take(1)

    def abused(self, host: str) -> None:
        """A connection of the host was closed for what it sent. It may owe connections for it, but not for ever."""
        self._of(host).use(ABUSE_COSTS, least=-self._burst)

    def _of(self, host: str) -> Allowance:
        found = self._used.get(host)
        if found is None:
            if len(self._used) >= MOST_HOSTS:
                self._used = {name: used for name, used in self._used.items() if not used.whole}
            if len(self._used) >= MOST_HOSTS:
                del self._used[next(iter(self._used))]
            found = self._used[host] = Allowance(self._burst, self.rate)
        return found
