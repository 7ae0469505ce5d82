"""A camera, the buffers between, and a reader that takes time to decode, on a clock of their own."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import av

from streamd.sources.backlog import Arrived
from streamd.sources.catch_up import CatchUp
from streamd.sources.pacing import RateLimit

S = 1_000_000_000
EPOCH = 1_000_000 * S
"""The reader's monotonic clock at the start of the camera."""
READ_S = 0.0002
SIZE = 10
"""Bytes of a picture."""


@dataclass
class Sent:
    """One picture of a camera."""

    taken_s: float
    """When it was taken, true time."""
    media_s: float
    """What the camera's clock says."""
    at_s: float
    """When it can be read."""
    key: bool


def camera(
    seconds: float, *, fps: float = 25.0, gop: int = 25, ppm: float = 0.0,
    media: Callable[[float], float] = lambda taken: taken, way: Callable[[int], float] = lambda number: 0.0,
    sends: Callable[[float], bool] = lambda taken: True,
) -> Iterator[Sent]:  # fmt: skip
    """A camera's pictures.

    Args:
        seconds: how long it runs.
        fps: pictures a second.
        gop: pictures from one key frame to the next.
        ppm: how much faster its clock runs.
        media: what its clock says, apart from that.
        way: seconds that a picture is on its way.
        sends: whether it is sent at all.
    """
    latest_s, number, since_key = 0.0, 0, gop
    while number / fps < seconds:
        taken_s = number / fps
        if sends(taken_s):
            key = since_key >= gop
            since_key = 1 if key else since_key + 1
            latest_s = max(latest_s, taken_s + way(number))  # TCP keeps the order
            yield Sent(taken_s, media(taken_s) * (1 + ppm / 1e6), latest_s, key)
        number += 1


@dataclass
class Reading:
    """What came of reading."""

    catch_up: CatchUp
    served: list[tuple[float, float]] = field(default_factory=list)
    """(now, when it was taken) of each picture, in seconds."""
    estimates: list[tuple[float, float, float]] = field(default_factory=list)
    """(now, estimated wait, true age on reading) of each packet, in seconds."""
    captured: list[tuple[float, float]] = field(default_factory=list)
    """(when it seemed to be captured, when it was taken) of each packet, in seconds."""
    broken: int = 0
    """Pictures that were decoded without the one before them."""
    decoded: int = 0
    read: int = 0

    @property
    def gap_s(self) -> float:
        """The longest time without a picture."""
        times = [now for now, _ in self.served]
        return max((b - a for a, b in itertools.pairwise(times)), default=0.0)

    def latency_s(self, since_s: float = 0.0) -> float:
        """The largest age of a picture when it was served."""
        return max(now - taken for now, taken in self.served if now >= since_s)


def read(
    pictures: Iterable[Sent], decode_s: Callable[[float], float], limit_s: float | None = 2.0,
    pauses: Callable[[float], float] = lambda now: 0.0, max_fps: float | None = None, kernel: bool = True,
    read_s: float = READ_S, room: int = 8 * SIZE, keys_only: bool = False,
) -> Reading:  # fmt: skip
    """Reads a camera as `AvSource` does.

    Args:
        pictures: of the camera.
        decode_s: how long decoding a picture takes, given the time.
        limit_s: see `CatchUp`.
        pauses: what the reader does before a read instead, seconds, given the time.
        kernel: tells whether more has arrived.
        room: bytes of its buffer.
        read_s: how long reading a packet takes.
        max_fps: limits what is left out, not what is served.
        keys_only: only key frames are decoded.
    """
    sent_all = list(pictures)
    number, now_s = 0, 0.0

    def unread() -> int | None:
        if not kernel:
            return None
        return min(room, sum(SIZE for sent in sent_all[number + 1 : number + 9] if sent.at_s <= now_s))

    catch_up = CatchUp(None if limit_s is None else round(limit_s * S), keys_only=keys_only, unread=unread)
    catch_up.limit = RateLimit(max_fps) if max_fps else None
    gauge, out = catch_up.gauge, Reading(catch_up)
    taken: dict[int, tuple[int, Sent]] = {}
    expected: int | None = None
    for number, sent in enumerate(sent_all):
        now_s += pauses(now_s)
        began_s = now_s
        now_s = max(now_s + read_s, sent.at_s)
        packet: Any = av.Packet(SIZE)
        packet.is_keyframe = sent.key
        packet.pts = number
        arrived_ns, before_ns = EPOCH + round(now_s * S), gauge.now_ns
        captured_ns = gauge.add(round(sent.media_s * S), arrived_ns)
        if gauge.wait_ns > 250_000_000 and not catch_up.active:
            catch_up.worked(EPOCH + round(began_s * S) - before_ns)
        out.read += 1
        out.estimates.append((now_s, gauge.wait_ns / S, now_s - sent.taken_s))
        out.captured.append(((captured_ns - EPOCH) / S, sent.taken_s))
        taken[number] = (captured_ns, sent)
        ready: Iterable[Arrived] = (Arrived(packet, captured_ns, captured_ns, False),)
        if gauge.late or gauge.suspect or catch_up.active:
            ready = deque(catch_up.take(next(iter(ready))))
            if catch_up.cut:
                catch_up.cut, expected = False, None
        for each in ready:
            if keys_only and not each.packet.is_keyframe:
                continue
            now_s += decode_s(now_s)
            stamp = each.packet.pts
            assert stamp is not None
            at_ns, picture = taken[stamp]
            out.broken += not picture.key and stamp != expected
            expected = stamp + 1
            out.decoded += 1
            if at_ns >= catch_up.served_ns:
                out.served.append((now_s, picture.taken_s))
    return out
