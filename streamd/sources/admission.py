"""Limits how many inputs are opened at the same time.

Two hundred streams that open at once delay each other beyond every time limit. The driver creates NVDEC decoders one
after another over all processes of a GPU (about 55 ms each on an H200), and probing a file or starting a decoder
process is work for the CPU. Each of these therefore has a gate with a few places, and a time limit starts once a place
is taken.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import stat
import tempfile
import threading
import time
from functools import cache
from pathlib import Path

from streamd.errors import SourceError

DEVICE_PLACES = 4
"""Number of decoders created at a time on one GPU. A single one leaves the driver idle in between (60 ms per decoder
instead of 55); four keep it busy, and each then takes 0.2 to 0.3 s."""
CONNECT_PLACES = 64
CONNECT_S = 0.5
"""A connection that takes longer is waiting for its camera rather than the CPU, and no longer counts."""
FILE_S = 5.0
"""The same for a file: its file system hangs."""
PROCESS_S = 10.0
"""The same for a decoder process that has not sent anything yet."""
TURN_S = 20.0
"""A live stream that has found no free place for this long waits for one: others that wait, such as files, look for one
more often than its packets come."""
_POLL_S = 0.005
_LOOK_S = 0.25
"""How soon a waiting stream notices that it was closed."""


class Ticket:
    """A taken place. `leave` releases it: idempotent, any thread."""

    def __init__(self, gate: Gate, place: int, expires: float) -> None:
        self._gate, self._place = gate, place
        self._lock = threading.Lock()
        self._left = False
        self.expires = expires
        """Monotonic seconds from which on it no longer counts, as far as this process waits for places."""

    def leave(self) -> None:
        """Another may enter."""
        with self._lock:
            if self._left:
                return
            self._left = True
        self._gate.free(self, self._place)


class Gate:
    """Admits a limited number of callers at the same time.

    With `folder`, all processes of this user that name it share the places: each place is a file, held by locking it.
    The kernel unlocks the files of a process that dies.

    Args:
        places: number of places.
        folder: folder for the files; None: for this process only.
    """

    def __init__(self, places: int, folder: Path | None = None) -> None:
        self._lock = threading.Lock()
        self._turn = threading.Lock()
        """Only one of the waiting callers looks for a free place, so that a hundred do not wake up for each."""
        self._held: dict[int, Ticket] = {}
        self._files: list[int] = []
        self._places = places
        if folder is not None:
            for place in range(places):
                flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
                self._files.append(os.open(folder / f"{place}.lock", flags, 0o600))

    def try_enter(self, patience_s: float) -> Ticket | None:
        """A ticket, if a place is free.

        Args:
            patience_s: longest time that the ticket counts, in seconds.
        """
        now = time.monotonic()
        with self._lock:
            for place, ticket in list(self._held.items()):
                if ticket.expires <= now:
                    self._release(place)
            for place in range(self._places):
                if place in self._held or (self._files and not self._locked(place)):
                    continue
                ticket = self._held[place] = Ticket(self, place, now + patience_s)
                return ticket
        return None

    def _locked(self, place: int) -> bool:
        try:
            fcntl.flock(self._files[place], fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def enter(self, closed: threading.Event, stream: str, patience_s: float) -> Ticket:
        """Waits for a place.

        Args:
            patience_s: see `try_enter`.
            closed: ends the wait within a second.
            stream: id of the stream, for the error.

        Raises:
            SourceError: `closed` was set first.
        """
        while not self._turn.acquire(timeout=_LOOK_S):
            if closed.is_set():
                raise _closed(stream)
        try:
            while (ticket := self.try_enter(patience_s)) is None:
                if closed.wait(_POLL_S):
                    raise _closed(stream)
            return ticket
        finally:
            self._turn.release()

    def free(self, ticket: Ticket, place: int) -> None:
        """See `Ticket.leave`."""
        with self._lock:
            if self._held.get(place) is ticket:
                self._release(place)

    def _release(self, place: int) -> None:
        del self._held[place]
        if self._files:
            fcntl.flock(self._files[place], fcntl.LOCK_UN)


def _closed(stream: str) -> SourceError:
    return SourceError("disconnected", f"stream {stream}: closed while opening")


@cache
def cpu_gate() -> Gate:
    """The gate for CPU work: probing a file and its first software decoding, or starting a decoder process."""
    return Gate(max(4, 2 * len(os.sched_getaffinity(0))))


@cache
def connect_gate() -> Gate:
    """The gate for connecting to cameras, which is mostly waiting: limits simultaneous handshakes and probes."""
    return Gate(CONNECT_PLACES)


@cache
def device_gate(ordinal: int) -> Gate:
    """The gate for creating decoders on a GPU, for all processes of this user."""
    folder = None
    with contextlib.suppress(OSError):
        folder = _folder(f"cuda-{_identity(ordinal)}")
    return Gate(DEVICE_PLACES, folder)


def _identity(ordinal: int) -> str:
    """Which GPU it is, the same in all processes, however they number it: its UUID, or the number where it has none."""
    device, uuid = ctypes.c_int(), (ctypes.c_ubyte * 16)()
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
        failed = cuda.cuInit(0) or cuda.cuDeviceGet(ctypes.byref(device), ordinal) or cuda.cuDeviceGetUuid(uuid, device)
    except (OSError, AttributeError):
        return str(ordinal)
    return str(ordinal) if failed else bytes(uuid).hex()


def _folder(name: str) -> Path:
    """A folder that only this user can write, the same in every process.

    Raises:
        OSError: it cannot be created, or belongs to somebody else.
    """
    runtime = os.environ.get("RUNTIME_DIRECTORY", "").split(":")[0]  # systemd's
    base = Path(runtime or tempfile.gettempdir()) / f"streamd-opening-{os.getuid()}"
    base.mkdir(mode=0o700, exist_ok=True)
    status = base.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o022:
        raise PermissionError(f"{base} is not private to this user")
    folder = base / name
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder


class Admission:
    """The passage of one source through the gates. For the source's thread, except `leave`.

    A file holds its place from before it is opened until its decoder exists. A camera may take long to respond: it
    holds one place while it connects, and one of the GPU's once a key frame has arrived (see `backlog`).

    Args:
        stream: id of the stream, for errors.
        live: False for a file.
        closed: ends every wait.
    """

    def __init__(self, stream: str, live: bool, closed: threading.Event) -> None:
        self._stream, self._live, self._closed = stream, live, closed
        self.ticket: Ticket | None = None
        """The place that is held."""
        self._device: int | None = None
        self._times = [0.0] * 4
        """Monotonic seconds of the latest connection: asked for a place, got it, connected, got one of the GPU's."""
        self.waiting = False
        """True while `may_decode` has to be called."""

    def enter(self, device: int | None) -> None:
        """Call before opening.

        Args:
            device: device whose decoder will be used; None for software.

        Raises:
            SourceError: closed while waiting.
        """
        self._device = device
        self.waiting = False
        gate = connect_gate() if self._live else cpu_gate() if device is None else device_gate(device)
        asked = time.monotonic()
        self.ticket = gate.enter(self._closed, self._stream, CONNECT_S if self._live else FILE_S)
        now = time.monotonic()
        self._times = [asked, now, now, now]

    def connected(self) -> None:
        """After opening."""
        self._times[2] = self._times[3] = time.monotonic()
        if self._live:
            self.leave()
            self.waiting = self._device is not None

    def may_decode(self, *, wait: bool = False) -> bool:
        """Whether a camera's decoder may be created now. Where not, the packet is to be kept and the next one read: a
        camera that is kept waiting drops pictures or hangs up. So a free place is looked for with every packet.

        Args:
            wait: wait for a place; there is nothing more to read.

        Raises:
            SourceError: closed while waiting.
        """
        assert self._device is not None
        gate = device_gate(self._device)
        ticket = gate.try_enter(FILE_S)
        if ticket is None:
            if not wait and time.monotonic() - self._times[2] < TURN_S:
                return False
            ticket = gate.enter(self._closed, self._stream, FILE_S)
        self.ticket, self.waiting = ticket, False
        self._times[3] = time.monotonic()
        return True

    def created(self) -> None:
        """The decoder has been created by a first packet, or has rejected it."""
        self.leave()
        if self._device is not None:
            import structlog

            asked, entered, connected, admitted = self._times
            structlog.get_logger(__name__).debug(
                "decoder created", stream=self._stream, device=self._device, queued_s=round(entered - asked, 3),
                connect_s=round(connected - entered, 3), waited_s=round(admitted - connected, 3),
                create_s=round(time.monotonic() - admitted, 3),
            )  # fmt: skip

    def leave(self) -> None:
        """The decoder exists, or never will. Idempotent, any thread."""
        ticket = self.ticket
        if ticket is not None:
            ticket.leave()
            self.ticket = None
