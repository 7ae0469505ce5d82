"""Work that the stages enqueue on the GPU (events, kernels, graphs), through ctypes with the interpreter lock released.

Each of these calls takes a driver lock, which decoders in the same context and other processes on the GPU may hold for
long. pycuda makes them while holding the interpreter lock (and so does cuda-bindings before 13 when launching a graph),
so that every thread of the process waits: four workers on one H100 spent 3 to 20 % of all time recording events this
way. Releasing the lock has a price, too: 0.1 µs if nobody waits for it, up to about 60 µs if sixteen threads hold it
three quarters of the time. Copies, zeroing and stream synchronization release it in pycuda, and stay there.
"""

from __future__ import annotations

import ctypes
import struct
import threading
from typing import Any

from streamd.errors import BackendError

_P, _U = ctypes.c_void_p, ctypes.c_uint
# Without them, ctypes would pass a 64-bit handle as a 32-bit int.
_ARGUMENTS: dict[str, tuple[Any, ...]] = {
    "cuEventCreate": (_P, _U),
    "cuEventDestroy_v2": (_P,),
    "cuEventElapsedTime": (_P, _P, _P),
    "cuEventQuery": (_P,),
    "cuEventRecord": (_P, _P),
    "cuEventSynchronize": (_P,),
    "cuGetErrorString": (ctypes.c_int, _P),
    "cuGraphLaunch": (_P, _P),
    "cuLaunchKernel": (_P, _U, _U, _U, _U, _U, _U, _U, _P, _P, _P),
    "cuModuleGetFunction": (_P, _P, ctypes.c_char_p),
    "cuModuleLoadData": (_P, ctypes.c_char_p),
    "cuModuleUnload": (_P,),
    "cuStreamWaitEvent": (_P, _P, _U),
}
_OUT_OF_MEMORY = 2
_NOT_READY = 600
_BLOCKING_SYNC = 1
_PARAMETERS, _PARAMETERS_SIZE, _END = 1, 2, 0
"""CU_LAUNCH_PARAM_…"""


class Calls:
    """The driver's calls, for one GPU.

    Args:
        library: libcuda, loaded for this purpose only: argument types are declared on it.
        ordinal: the GPU, for messages.
    """

    def __init__(self, library: ctypes.CDLL, ordinal: int) -> None:
        for name, arguments in _ARGUMENTS.items():
            getattr(library, name).argtypes = arguments
        self.api = library
        self._ordinal = ordinal

    def check(self, status: int, what: str) -> None:
        """Checks the status that a call returned.

        Raises:
            BackendError: `what` failed.
        """
        if status == 0:
            return
        text = ctypes.c_char_p()
        self.api.cuGetErrorString(status, ctypes.byref(text))
        meaning = (text.value or b"unknown error").decode(errors="replace")
        advice = "; lower engine.slots or batch.max" if status == _OUT_OF_MEMORY else ""
        raise BackendError(f"backend tensorrt: GPU {self._ordinal}: {what} failed: {meaning} ({status}){advice}")


class Stream:
    """A CUDA stream: ordered internally, concurrent with all others.

    Args:
        calls: the driver's.
        raw: pycuda's stream.
    """

    def __init__(self, calls: Calls, raw: Any) -> None:
        self._calls = calls
        self.raw = raw
        self.handle = int(raw.handle)

    def wait(self, event: Event) -> None:
        """Makes work enqueued from now on wait for the last record of `event`; the caller does not wait."""
        self._calls.check(self._calls.api.cuStreamWaitEvent(self.handle, event.handle, 0), "cuStreamWaitEvent")

    def synchronize(self) -> None:
        """Waits until everything enqueued is done, with the GIL released."""
        self.raw.synchronize()

    def close(self) -> None:
        """Frees it: pycuda does so with the last reference."""
        self.raw = None


class Event:
    """A point in a stream, with a time stamp; waiting for it blocks the thread without spinning."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls
        made = ctypes.c_void_p()
        calls.check(calls.api.cuEventCreate(ctypes.byref(made), _BLOCKING_SYNC), "cuEventCreate")
        self.handle = made.value

    def record(self, stream: Stream | None) -> None:
        """Records the current end of `stream`; None is the legacy stream."""
        status = self._calls.api.cuEventRecord(self.handle, None if stream is None else stream.handle)
        self._calls.check(status, "cuEventRecord")

    def synchronize(self) -> None:
        """Waits until the recorded point is reached, with the GIL released."""
        self._calls.check(self._calls.api.cuEventSynchronize(self.handle), "cuEventSynchronize")

    def reached(self) -> bool:
        """Whether the recorded point has been reached."""
        status = self._calls.api.cuEventQuery(self.handle)
        if status == _NOT_READY:
            return False
        self._calls.check(status, "cuEventQuery")
        return True

    def seconds_since(self, earlier: Event) -> float:
        """Device time between two reached events, with a resolution of about half a microsecond."""
        ms = ctypes.c_float()
        status = self._calls.api.cuEventElapsedTime(ctypes.byref(ms), earlier.handle, self.handle)
        self._calls.check(status, "cuEventElapsedTime")
        return ms.value / 1e3

    def close(self) -> None:
        """Frees it. Idempotent."""
        handle, self.handle = self.handle, None
        if handle is not None:
            self._calls.api.cuEventDestroy_v2(handle)  # fails if the context has failed: then it is gone already


class Module:
    """Compiled device code.

    Args:
        calls: the driver's.
        ptx: ended by a zero byte.
    """

    def __init__(self, calls: Calls, ptx: bytes) -> None:
        self._calls = calls
        made = ctypes.c_void_p()
        calls.check(calls.api.cuModuleLoadData(ctypes.byref(made), ptx), "cuModuleLoadData")
        self._handle = made.value

    def kernel(self, name: str, arguments: str) -> Kernel:
        """A function, see `Kernel`; invalid once the module is closed."""
        found = ctypes.c_void_p()
        status = self._calls.api.cuModuleGetFunction(ctypes.byref(found), self._handle, name.encode())
        self._calls.check(status, f"cuModuleGetFunction: {name}")
        return Kernel(self._calls, found.value, arguments)

    def close(self) -> None:
        """Unloads it. Idempotent."""
        handle, self._handle = self._handle, None
        if handle is not None:
            self._calls.api.cuModuleUnload(handle)


class Kernel:
    """A function on the device.

    Args:
        calls: the driver's.
        handle: CUfunction.
        arguments: struct characters of its parameters, P for an address; the kernel uses C's alignment.
    """

    def __init__(self, calls: Calls, handle: int | None, arguments: str) -> None:
        self._calls = calls
        self.handle = handle
        layout = struct.Struct(arguments)
        self._pack_into = layout.pack_into
        self._values = ctypes.create_string_buffer(layout.size)
        self._size = ctypes.c_size_t(layout.size)
        self._extra = (ctypes.c_void_p * 5)(
            _PARAMETERS, ctypes.addressof(self._values), _PARAMETERS_SIZE, ctypes.addressof(self._size), _END
        )
        # The driver reads the values while other threads run: two launches of one kernel must not share them.
        self._lock = threading.Lock()

    def launch(self, stream: Stream, grid: tuple[int, int, int], block: tuple[int, int, int], *values: Any) -> None:
        """Enqueues the kernel."""
        with self._lock:
            self._pack_into(self._values, 0, *values)
            status = self._calls.api.cuLaunchKernel(self.handle, *grid, *block, 0, stream.handle, None, self._extra)
        self._calls.check(status, "cuLaunchKernel")


class Graph:
    """Captured work, launched as a unit.

    Args:
        calls: the driver's.
        bindings: of cuda-bindings.
        executable: its CUgraphExec.
        stream: where the work was captured.
    """

    def __init__(self, calls: Calls, bindings: Any, executable: Any, stream: Stream) -> None:
        self._calls = calls
        self._bindings = bindings
        self._executable = executable
        self._handle = int(executable)
        self._stream = stream.handle

    def launch(self) -> None:
        """Enqueues the captured work on the stream it was captured from.

        Raises:
            BackendError: the driver failed.
        """
        self._calls.check(self._calls.api.cuGraphLaunch(self._handle, self._stream), "cuGraphLaunch")

    def close(self) -> None:
        """Frees it. Idempotent."""
        executable, self._executable = self._executable, None
        if executable is not None:
            self._bindings.cuGraphExecDestroy(executable)
            self._handle = 0
