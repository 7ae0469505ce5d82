"""Interfaces that the flow needs: sources that deliver frames, and backends that turn batches into outputs."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from streamd.analysis.glance.picture import SurfaceReader
from streamd.flow.settings import StreamSettings
from streamd.types import Candidates, DecodePlan, Frame, Letterbox, ModelSpec, Outputs


@dataclass(slots=True, frozen=True)
class SourceInfo:
    """Properties of a source, known once it is open."""

    codec: str
    decoder: str
    """software or nvdec"""
    width: int
    """As declared, in pixels. Rotation and mid-stream changes are properties of the frames."""
    height: int
    fps: float
    """As declared by the stream; 0 if unknown."""
    live: bool
    """True if the sender sets the pace (a camera); False for a file."""
    still: bool = False
    """One picture, which is fetched again and again: an image, a snapshot URL."""


class SenderClock(Protocol):
    """What is known of a sender's clocks."""

    jumps: int
    """Number of times its media clock jumped, stepped back or stood still."""
    offset_s: float | None
    """Its wall clock minus arrival, in seconds; None while unknown."""
    drift: float | None
    """Seconds that its media clock gains per second; None while unknown."""


class UnknownClock:
    """The clock of a sender that says nothing about it."""

    jumps: int = 0
    offset_s: float | None = None
    drift: float | None = None


UNKNOWN_CLOCK = UnknownClock()


class Source(Protocol):
    """One connection to an input. `open` and `frames` are called by one thread, `close` by any.

    A source never retries: the stream's runner creates a new one for every attempt. It honours `max_fps` and `crop` of
    its settings itself: frames that `max_fps` leaves out are not yielded, and the crop is the `roi` of each frame. A
    class that derives from this one inherits what most sources do not need: counters at zero, no clock, no `adapt`.
    """

    corrupt: int = 0
    """Packets or frames that the decoder has rejected so far."""
    skipped: int = 0
    """Frames skipped by max_fps so far."""
    lost: int = 0
    """Lost RTP packets, as reported by FFmpeg."""
    overtaken: int = 0
    """Frames left out so far because the stream is read too slowly; the caller numbers and counts them."""
    discarded: int = 0
    """Frames that were read and will never be yielded, as the caller has stopped reading: known when the iterator of
    `frames` is closed. The caller numbers and counts them."""
    codec: str = ""
    """Of the frames from the latest one on that `begins`; empty where it is always that of `open`."""
    deadline: float = math.inf
    """Monotonic seconds by which the current call must have returned; infinite if there is none. A source that
    misses it is considered hung and is abandoned."""

    @property
    def clock(self) -> SenderClock:
        """What is known of the sender's clocks."""
        return UNKNOWN_CLOCK

    @property
    def behind_s(self) -> float | None:
        """How much later it is read than it could be, in seconds; None if unknown. Any thread."""
        return None

    def open(self) -> SourceInfo:
        """Connects, probes, and prepares the decoder.

        Raises:
            SourceError: with the reason; the source is closed and not used again.
        """
        ...

    def frames(self) -> Iterator[Frame]:
        """Yields frames in presentation order until the input ends. `epoch` and `seq` are left to the caller.

        The caller counts a `quarantined` frame and releases it.

        Paced sources sleep here; a blocked consumer only delays the next read.

        Raises:
            SourceError: the input failed; never for a single bad packet.
        """
        ...

    def adapt(self, settings: StreamSettings) -> None:
        """Adopts settings that differ only in what needs no new connection: see `StreamSettings.HOT`. Any thread."""
        return  # without it, mypy takes the method for abstract

    def close(self) -> None:
        """Interrupts a waiting `open` or `frames` within a second. Idempotent, callable from any thread."""
        ...


class Slot(Protocol):
    """Preallocated buffers of one batch in flight. The number of slots is the pipeline's flow control."""

    index: int


SlotT = TypeVar("SlotT", bound=Slot)


class Backend(ABC, Generic[SlotT]):
    """One model on one device, with one method per stage, called by that stage's thread.

    `preprocess`, `infer` and `collect` of one slot are called in this order, each by a single thread that is the
    only caller of that method, and the slot is not used again before its outputs have been read. Calls for
    different slots overlap freely. On a device all three enqueue or wait on the slot's own queue; none allocates
    device or pinned memory, and none waits for the whole device.
    """

    spec: ModelSpec
    """Known once the backend is open; dimensions other than the batch are fixed."""
    title = "backend"
    """Its name for people: in the log, on the page and in `streamd_build_info`."""

    @property
    @abstractmethod
    def slots(self) -> Sequence[SlotT]:
        """Empty until `start`."""

    @abstractmethod
    def start(self, plan: DecodePlan | None = None) -> None:
        """Finishes compiling and allocates every slot. Called once, before the first batch.

        Args:
            plan: what a device needs to decode boxes itself; None for raw outputs.

        Raises:
            BackendError: the device refused (memory, driver).
        """

    @abstractmethod
    def preprocess(self, slot: SlotT, frames: Sequence[Frame]) -> Sequence[Letterbox]:
        """Letterboxes and normalises 1 to `spec.max_batch` frames of any sizes into the slot's input.

        Returns one Letterbox for each frame. After the call, or at the latest once `collect` of the slot returned, the
        frames' pictures are no longer needed.

        Raises:
            BackendError: the device failed; the process must end.
        """

    @abstractmethod
    def infer(self, slot: SlotT) -> None:
        """Starts the network on the slot's input and returns without waiting for it.

        Raises:
            BackendError: the device failed; the process must end.
        """

    @abstractmethod
    def collect(self, slot: SlotT) -> Outputs | Sequence[Candidates]:
        """Waits for the slot's batch and returns its outputs, views that stay valid until the slot's next use.

        Either the raw outputs in `spec.outputs` order, first dimension the number of frames, or, where the device
        has decoded the boxes itself, one `Candidates` a frame. They may be `suppressed` only where the plan says how.

        Raises:
            BackendError: the device failed; the process must end.
        """

    @abstractmethod
    def close(self) -> None:
        """Frees everything. No other method is running or will be called. Idempotent."""

    # ------------------------------------------------------------------------ optional capabilities

    @property
    def device(self) -> int | None:
        """CUDA ordinal whose hardware decoders hand frames over without a copy; None where there are none."""
        return None

    @property
    def memory(self) -> Mapping[str, int]:
        """Bytes held, by kind, for the metrics; the kinds never change. Empty where nothing is known."""
        return {}

    def thumbnail(self, frame: Frame, width: int, height: int) -> npt.NDArray[np.uint8]:
        """A small upright picture for people, (height, width, 3) uint8, BGR, of a frame in the memory of `device`.

        For frames whose batch was collected. For one thread, which may be another one than those of the stages.

        Raises:
            FrameError: the picture cannot be read.
            BackendError: the device failed.
        """
        raise NotImplementedError

    def surface_reader(self) -> SurfaceReader | None:
        """What makes small pictures of frames in the memory of `device`; None where nothing does.

        The same object at every call, closed with the backend. For one thread.

        Raises:
            BackendError: the device refused (memory, driver).
        """
        return None

    def device_times(self, slot: SlotT) -> Mapping[str, float]:
        """Seconds that the device spent on the slot's last collected batch, by stage: preprocess, infer.

        Valid from `collect` to the slot's next `preprocess`. Empty where the device does not tell.
        """
        return {}
