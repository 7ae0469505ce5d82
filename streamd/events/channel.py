"""From a worker's rules to the journal in another process: acknowledged, sent again until it is, and in order.

The sender numbers its events from 1 and keeps each until the receiver says that it is committed. The receiver takes
only the number that comes next, so that whatever is lost on the way, or comes twice, changes nothing; this is
go-back-N, as in any textbook of data links. Neither class knows what carries the bytes: `link` does.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Protocol

import msgspec
import structlog

from streamd.errors import SinkError
from streamd.events.losses import Losses, Lost
from streamd.events.record import Event

log = structlog.get_logger(__name__)

BOUND = 10_000
"""Events that a sender keeps."""
BURST = 200
"""Most events in a message."""
WINDOW = 2000
"""Most events under way."""
RESEND_S = 0.5
"""Without news from the receiver for so long, everything under way is sent again."""


class Burst(msgspec.Struct, frozen=True, array_like=True):
    """What a sender sends."""

    origin: str
    base: int
    """The oldest number that it still keeps: a receiver that knows nothing of it begins here."""
    first: int
    """The number of the first event."""
    events: list[Event | None]
    """None is a loss without an event after it."""
    lost: dict[int, Lost] = {}
    """What found no room at the sender, by the number of the event after it."""


class Ack(msgspec.Struct, frozen=True, array_like=True):
    """What a receiver answers."""

    committed: int
    """Every event up to this number is in the journal, for good."""


class EventSink(Protocol):
    """What a receiver hands events to: the journal."""

    def submit(self, event: Event | None, origin: str = "", n: int = 0, lost: Lost | None = None) -> bool:
        """See `Journal.submit`."""

    def taken(self, origin: str) -> int:
        """See `Journal.taken`."""

    def acknowledged(self, origin: str) -> int:
        """See `Journal.acknowledged`."""


class Outbox:
    """The sender's side. Any thread puts events in, one sends.

    Args:
        origin: `boot_id/life` of this process; no other process ever has the same.
        bound: events that are kept. Beyond that they are lost, counted, and told with the next one.
        clock: monotonic seconds; injected by tests.
    """

    def __init__(self, origin: str, *, bound: int = BOUND, clock: Callable[[], float] = time.monotonic) -> None:
        self.origin = origin
        self._bound, self._clock = bound, clock
        self._lock = threading.Lock()
        self._kept: deque[tuple[Event | None, Lost | None]] = deque()
        self._base = 1
        """Number of the first that is kept."""
        self._next = 1
        """Number of the next to send; falls back to the base where nothing was heard."""
        self._heard_at = clock()
        self._losses = Losses()
        self._open: set[str] = set()
        """Ids of events that have begun and been kept: only their ends need to be made up for."""
        self.resent = 0
        """Events that were sent more than once."""

    @property
    def lost(self) -> int:
        """Events that found no room, since the start."""
        return self._losses.total

    def __len__(self) -> int:
        return len(self._kept)

    def put(self, event: Event) -> bool:
        """Keeps an event until it is committed; False where there is no room. Never waits."""
        with self._lock:
            if len(self._kept) >= self._bound:
                self._losses.add(event, open_=event.id in self._open)
                if event.kind == "end":
                    self._open.discard(event.id)
                return False
            if event.kind == "begin":
                self._open.add(event.id)
            elif event.kind == "end":
                self._open.discard(event.id)
            self._kept.append((event, self._losses.take()))
        return True

    def burst(self) -> Burst | None:
        """What is to be sent now; None where there is nothing to send, or enough is under way. The sending thread."""
        with self._lock:
            if not self._kept:
                return None
            now = self._clock()
            end = self._base + len(self._kept)
            if self._next > self._base and now - self._heard_at > RESEND_S:
                self.resent += self._next - self._base
                self._next = self._base
            first = self._next
            if first == self._base:
                self._heard_at = now
            last = min(end, first + BURST, self._base + WINDOW)
            if last <= first:
                return None
            offset = first - self._base
            chosen = list(itertools.islice(self._kept, offset, offset + last - first))
            self._next = last
            lost = {n: each for n, (_, each) in enumerate(chosen, first) if each is not None}
            return Burst(self.origin, self._base, first, [event for event, _ in chosen], lost)

    def acknowledge(self, ack: Ack) -> None:
        """Lets go of what is committed. The sending thread."""
        with self._lock:
            gone = min(ack.committed + 1 - self._base, len(self._kept))
            if gone <= 0:
                return
            for _ in range(gone):
                self._kept.popleft()
            self._base += gone
            self._next = max(self._next, self._base)
            if self._losses:
                # There is room again: told now, for nobody knows when the next event comes.
                self._kept.append((None, self._losses.take()))
            self._heard_at = self._clock()

    def due_s(self) -> float:
        """Seconds until something under way is to be sent again."""
        return max(0.0, self._heard_at + RESEND_S - self._clock()) if self._kept else RESEND_S


class Inbox:
    """The receiver's side. One thread.

    Args:
        sink: the journal.
    """

    def __init__(self, sink: EventSink) -> None:
        self._sink = sink
        self.repeated = 0
        """Events that came again."""
        self.early = 0
        """Events that came before one that was lost on the way; they come again."""

    def take(self, burst: Burst) -> None:
        """Hands over what comes next; the rest of it will come again."""
        sink, origin = self._sink, burst.origin
        # Below the base all is settled, whatever this journal knows of it: it may be younger than the sender.
        expected = max(sink.taken(origin) + 1, burst.base)
        for n, event in enumerate(burst.events, burst.first):
            if n < expected:
                self.repeated += 1
                continue
            if n > expected:
                self.early += len(burst.events) + burst.first - n
                return
            if not sink.submit(event, origin, n, burst.lost.get(n)):
                return
            expected += 1

    def ack(self, origin: str) -> Ack:
        """What may be let go."""
        return Ack(self._sink.acknowledged(origin))


_burst = msgspec.msgpack.Decoder(Burst)
_ack = msgspec.msgpack.Decoder(Ack)


def encode(message: Burst | Ack) -> bytes:
    """As bytes."""
    return msgspec.msgpack.encode(message)


def decode_burst(data: bytes) -> Burst:
    """From bytes.

    Raises:
        SinkError: it is none.
    """
    try:
        return _burst.decode(data)
    except msgspec.DecodeError as error:
        raise SinkError(f"event channel: not a burst of events: {error}") from error


def decode_ack(data: bytes) -> Ack:
    """From bytes.

    Raises:
        SinkError: it is none.
    """
    try:
        return _ack.decode(data)
    except msgspec.DecodeError as error:
        raise SinkError(f"event channel: not an acknowledgement: {error}") from error
