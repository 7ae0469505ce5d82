"""Transfers events from a worker's rules to the journal in another process: in order, and sent again until
acknowledged.

The sender numbers its events from 1 and keeps each until the receiver reports that it is committed. The receiver
accepts only the next number, so lost and repeated messages do no harm (go-back-N ARQ). Neither class knows the
transport, which is in `link`."""

from __future__ import annotations

import itertools
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Protocol, TypeVar

import msgspec
import structlog

from streamd.errors import SinkError
from streamd.events.losses import Losses, Lost
from streamd.events.record import Event, Media, RuleStates

log = structlog.get_logger(__name__)

BOUND = 10_000
"""Events that a sender keeps."""
BURST = 200
"""Largest number of events in a message."""
WINDOW = 2000
"""Largest number of events in flight."""
RESEND_S = 0.5
"""Everything in flight is sent again if the receiver has been silent for this long."""


class Link(msgspec.Struct, frozen=True, array_like=True):
    """A file of an event that was sent before."""

    event: str
    role: str
    media: Media


class Burst(msgspec.Struct, frozen=True, array_like=True):
    """A message from a sender."""

    origin: str
    base: int
    """The oldest number that it still keeps: a receiver that does not know the sender begins here."""
    first: int
    """The number of the first event."""
    events: list[Event | None]
    """None: a loss with no event after it, a link, or states of rules."""
    lost: dict[int, Lost] = {}
    """Events that the sender had no room for, by the number of the event after them."""
    links: dict[int, Link] = {}
    """By number."""
    states: dict[int, RuleStates] = {}
    """By number."""


class Ack(msgspec.Struct, frozen=True, array_like=True):
    """A receiver's answer."""

    committed: int
    """Every event up to this number is committed to the journal."""


class EventSink(Protocol):
    """What a receiver passes events to: the journal."""

    def submit(self, event: Event | None, origin: str = "", n: int = 0, lost: Lost | None = None) -> bool:
        """See `Journal.submit`."""

    def taken(self, origin: str) -> int:
        """See `Journal.taken`."""

    def acknowledged(self, origin: str) -> int:
        """See `Journal.acknowledged`."""

    def link(self, event_id: str, role: str, media: Media) -> None:
        """See `Journal.link`."""

    def keep(self, told: RuleStates) -> None:
        """See `Journal.keep`."""


class Outbox:
    """The sender's side. Any thread adds events, one thread sends.

    Args:
        origin: `boot_id/life` of this process; unique to it.
        bound: largest number of events kept. Further ones are lost, counted, and reported with the next event.
        clock: monotonic seconds; injected by tests.
    """

    def __init__(self, origin: str, *, bound: int = BOUND, clock: Callable[[], float] = time.monotonic) -> None:
        self.origin = origin
        self._bound, self._clock = bound, clock
        self._lock = threading.Lock()
        self._kept: deque[tuple[Event | Link | RuleStates | None, Lost | None]] = deque()
        self._base = 1
        """Number of the first event that is kept."""
        self._next = 1
        """Number of the next event to send; returns to the base if the receiver is silent."""
        self._heard_at = clock()
        self._losses = Losses()
        self._open: set[str] = set()
        """Ids of events whose begin was kept: only their ends must be made up for."""
        self.resent = 0
        """Events that were sent more than once."""

    @property
    def lost(self) -> int:
        """Events lost for lack of room since the start."""
        return self._losses.total

    def __len__(self) -> int:
        return len(self._kept)

    def put(self, event: Event) -> bool:
        """Keeps an event until it is committed; False if there is no room. Never waits."""
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

    def note(self, note: Link | RuleStates) -> bool:
        """Keeps what is no event until it is committed, behind the events before it; False where there is no room."""
        with self._lock:
            if len(self._kept) >= self._bound:
                return False
            self._kept.append((note, None))
        return True

    def burst(self) -> Burst | None:
        """The next message; None if there is nothing to send, or enough is in flight. For the sending thread."""
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
            events = [each if isinstance(each, Event) else None for each, _ in chosen]
            links = {n: each for n, (each, _) in enumerate(chosen, first) if isinstance(each, Link)}
            states = {n: each for n, (each, _) in enumerate(chosen, first) if isinstance(each, RuleStates)}
            return Burst(self.origin, self._base, first, events, lost, links, states)

    def acknowledge(self, ack: Ack) -> None:
        """Releases committed events. For the sending thread."""
        with self._lock:
            gone = min(ack.committed + 1 - self._base, len(self._kept))
            if gone <= 0:
                return
            for _ in range(gone):
                self._kept.popleft()
            self._base += gone
            self._next = max(self._next, self._base)
            if self._losses:
                # There is room again: the loss is reported now, since the next event may be far off.
                self._kept.append((None, self._losses.take()))
            self._heard_at = self._clock()

    def due_s(self) -> float:
        """Seconds until events in flight must be sent again."""
        return max(0.0, self._heard_at + RESEND_S - self._clock()) if self._kept else RESEND_S


class Inbox:
    """The receiver's side. One thread.

    Args:
        sink: the journal.
    """

    def __init__(self, sink: EventSink) -> None:
        self._sink = sink
        self.repeated = 0
        """Events received again."""
        self.early = 0
        """Events received out of order, after a lost one; they will be sent again."""

    def take(self, burst: Burst) -> None:
        """Passes on the events that are next in order; the rest will be sent again."""
        sink, origin = self._sink, burst.origin
        # Everything below the base is settled, even if this journal does not know it: it may be newer than the sender.
        expected = max(sink.taken(origin) + 1, burst.base)
        for n, event in enumerate(burst.events, burst.first):
            if n < expected:
                self.repeated += 1
                continue
            if n > expected:
                self.early += len(burst.events) + burst.first - n
                return
            if (link := burst.links.get(n)) is not None:
                # Before its number is acknowledged. It may be noted again if the number is refused.
                sink.link(link.event, link.role, link.media)
            if (told := burst.states.get(n)) is not None:
                sink.keep(told)
            if not sink.submit(event, origin, n, burst.lost.get(n)):
                return
            expected += 1

    def ack(self, origin: str) -> Ack:
        """The acknowledgement for a sender."""
        return Ack(self._sink.acknowledged(origin))


T = TypeVar("T")
_burst = msgspec.msgpack.Decoder(Burst)
_ack = msgspec.msgpack.Decoder(Ack)


def encode(message: Burst | Ack) -> bytes:
    """Encodes a message or an answer."""
    return msgspec.msgpack.encode(message)


def decode_burst(data: bytes) -> Burst:
    """Decodes a message from a sender.

    Raises:
        SinkError: the message is invalid.
    """
    return _decode(_burst, data, "a burst of events")


def decode_ack(data: bytes) -> Ack:
    """Decodes an answer of a receiver.

    Raises:
        SinkError: the answer is invalid.
    """
    return _decode(_ack, data, "an acknowledgement")


def _decode(decoder: msgspec.msgpack.Decoder[T], data: bytes, what: str) -> T:
    try:
        return decoder.decode(data)
    except msgspec.DecodeError as error:
        raise SinkError(f"event channel: not {what}: {error}") from error
