"""The ring of a stream whose frames are not all looked at."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from streamd.analysis.glance.gate import MOVING, Gate
from streamd.flow.glimpse import NO_PICTURE
from streamd.flow.ring import Bell, Closed, Policy, Ring
from streamd.types import Frame

LATE_NS = 100_000_000
"""If frames with motion wait for longer than this and newer ones wait behind them, the network cannot keep up."""


def is_record(frame: Frame) -> bool:
    """Whether the network does not look at a frame."""
    return frame.view is not None and not frame.view.wanted


class GatedRing(Ring[Frame]):
    """A ring in which only frames to be looked at take up room.

    The others wait in it for their turn as records without a picture, so that everything is published in the order of
    capture; they are never dropped for lack of room, and do not wake a consumer that comes back soon by itself. If the
    ring is full of frames to be looked at, or their consumer is late (`thin`), one that is wanted for another reason
    than motion becomes such a record (`busy`), or else the oldest with motion (`overload`): then the network looks less
    often, and its answers are as fresh as before. Only with the policy block, all of them wait.

    Args:
        capacity: see `Ring`.
        policy: see `Ring`.
        gate: of the stream.
        on_drop: see `Ring`.
        bell: see `Ring`.
    """

    def __init__(
        self,
        capacity: int,
        policy: Policy,
        gate: Gate,
        *,
        on_drop: Callable[[Frame, str], None] | None = None,
        bell: Bell | None = None,
    ) -> None:
        super().__init__(capacity, policy, on_drop=on_drop, bell=bell)
        self._gate = gate
        self.pictures = 0
        """Frames in it that are to be looked at."""

    @property
    def moving(self) -> bool:
        """Whether a frame in which something moves is waiting."""
        with self._lock:
            return any(frame.view is None or (frame.view.wanted and frame.view.why in MOVING) for frame in self._items)

    def put(self, item: Frame, timeout: float | None = None) -> None:
        """See `Ring.put`."""
        gone: list[Frame] | None = None
        record = is_record(item)
        with self._lock:
            if not record and self.policy == "block" and self.pictures >= self.capacity:
                self._wait_for_room(lambda: self.pictures < self.capacity, timeout)
            if self._closed:
                raise Closed
            if not record:
                room = 1 if self.policy == "latest" else self.capacity
                while self.pictures >= room:
                    if not self._yield() and not self._yield(moving=True):
                        gone = [*(gone or ()), self._oldest()]
                self.pictures += 1
            self._items.append(item)
            if self._getting:
                self._not_empty.notify()
        if self._bell is not None and not (record and self._bell.patient):
            self._bell.ring()
        if gone and self._on_drop is not None:
            for old in gone:
                self._on_drop(old, "ring_full")

    def _yield(self, *, moving: bool = False) -> bool:
        """Makes a record of the oldest frame without motion, or with; False if there is none. Called with the lock."""
        for frame in self._wanted():
            if frame.view is not None and (frame.view.why in MOVING) is moving:
                self._spare(frame)
                return True
        return False

    def _wanted(self) -> Iterator[Frame]:
        """The frames to be looked at. Called with the lock."""
        return (frame for frame in self._items if not is_record(frame))

    def _spare(self, frame: Frame) -> None:
        """Makes a record of a frame that waits here. Called with the lock."""
        if self.give_up(frame):
            self.pictures -= 1

    def give_up(self, frame: Frame) -> bool:
        """Makes a record of a frame that was to be looked at; False for one of which nothing is known."""
        view = frame.view
        if view is None or not view.wanted:
            return False
        moves = view.why in MOVING
        view.wanted, view.why = False, "overload" if moves else "busy"
        frame.picture = NO_PICTURE
        if not moves or not self.pictures:
            # No newer one is looked at instead.
            self._gate.yielded()
        return True

    def thin(self, now_ns: int) -> None:
        """Makes records of all frames to be looked at but the newest with motion, if the oldest one waits for too long.

        Args:
            now_ns: monotonic.
        """
        with self._lock:
            if self.pictures < 2 or self.policy == "block":
                return
            wanted = list(self._wanted())
            if now_ns - wanted[0].decoded_ns <= LATE_NS:
                return
            moving = [frame for frame in wanted if frame.view is not None and frame.view.why in MOVING]
            kept = (moving or wanted)[-1]
            for frame in wanted:
                if frame is not kept:
                    self._spare(frame)

    def let_go(self, now_ns: int) -> None:
        """Makes records of frames without motion that have waited for too long, while newer ones came: the next one is
        looked at instead, if its turn comes.

        Args:
            now_ns: monotonic.
        """
        with self._lock:
            wanted = list(self._wanted())
            if not wanted or len(self._items) < 2 or self.policy == "block":
                return
            if now_ns - wanted[0].decoded_ns > LATE_NS and not any(
                frame.view is None or frame.view.why in MOVING for frame in wanted
            ):
                for frame in wanted:
                    self._spare(frame)

    def _oldest(self) -> Frame:
        """Removes the oldest frame that is to be looked at. Called with the lock."""
        for i, frame in enumerate(self._items):
            if not is_record(frame):
                del self._items[i]
                self.pictures -= 1
                return frame
        raise AssertionError("no picture")

    def take(self) -> Frame | None:
        """See `Ring.take`."""
        with self._lock:
            return self._first() if self._items else None

    def get(self, timeout: float | None = None) -> Frame:
        """See `Ring.get`."""
        with self._lock:
            if not self._items:
                self._wait_for_item(timeout)
            return self._first()

    def _first(self) -> Frame:
        """Removes the first frame. Called with the lock."""
        item = self._items.popleft()
        if not is_record(item):
            self.pictures -= 1
            if self._putting:
                self._not_full.notify()
        return item

    def records(self) -> list[Frame]:
        """Takes the frames at its beginning that are not to be looked at."""
        out: list[Frame] = []
        with self._lock:
            while self._items and is_record(self._items[0]):
                out.append(self._items.popleft())
        return out

    def change(self, capacity: int, policy: Policy) -> None:
        """See `Ring.change`."""
        gone: list[Frame] = []
        with self._lock:
            self.capacity, self.policy = capacity, policy
            while self.pictures > (1 if policy == "latest" else capacity):
                gone.append(self._oldest())
            self._not_full.notify_all()
        if self._on_drop is not None:
            for item in gone:
                self._on_drop(item, "ring_full")

    def close(self, *, discard: bool = False, reason: str = "shutdown") -> None:
        """See `Ring.close`."""
        super().close(discard=discard, reason=reason)
        if discard:
            self.pictures = 0
