"""The CUDA driver, and the only file that uses pycuda (and cuda-bindings for graphs, which pycuda lacks).

The calls made for every batch are in `enqueue`.

It uses the primary context: FFmpeg's decoder shares it, so that its surfaces are valid addresses here. FFmpeg rejects a
primary context whose scheduling flags differ from its own (blocking), so they are set first. No context stays pushed on
any thread: pycuda aborts the process if a thread ends with a context on its stack.
"""

from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import structlog

from streamd.engine.tensorrt.enqueue import Calls, Event, Graph, Kernel, Module, Stream
from streamd.errors import BackendError

log = structlog.get_logger(__name__)
T = TypeVar("T")

MEMORY_S = 1.0
"""How long a reading of the device's memory is reused for metrics."""
_SCHED_BLOCKING_SYNC = 4
_NON_BLOCKING = 1
"""CU_STREAM_NON_BLOCKING: does not synchronize with the legacy stream, which FFmpeg uses."""


def _driver_api() -> ctypes.CDLL:
    """The driver calls that pycuda lacks, or makes while holding the interpreter lock."""
    try:
        return ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        raise BackendError(
            f"backend tensorrt: no NVIDIA driver ({error}); install it, or use engine kind openvino"
        ) from error


class DeviceBuffer:
    """Device memory."""

    def __init__(self, raw: Any, size: int) -> None:
        self.raw = raw
        self.address = int(raw)
        self.size = size

    def close(self) -> None:
        """Frees it while its context is current: pycuda does so with the last reference."""
        self.raw = None


class PinnedBuffer:
    """Page-locked host memory, as bytes: copies to and from it do not block."""

    def __init__(self, array: npt.NDArray[np.uint8]) -> None:
        self.raw: Any = array
        self.bytes = array
        """(size,) uint8"""
        self.view = memoryview(array.data)
        self.address = int(array.ctypes.data)
        self.size = array.nbytes

    def close(self) -> None:
        """See `DeviceBuffer.close`."""
        self.view.release()
        self.bytes = np.empty(0, np.uint8)
        self.raw = None


def _checked(api: Any, result: Sequence[Any], what: str) -> Any:
    """The value of a cuda-bindings call, which returns (status, value)."""
    if result[0] != api.CUresult.CUDA_SUCCESS:
        raise BackendError(f"backend tensorrt: CUDA: {what}: {getattr(result[0], 'name', result[0])}")
    return result[1] if len(result) > 1 else None


class Device:
    """One GPU, and everything allocated on it. `with device:` makes its context current on the calling thread.

    Vendor errors that leave such a block become BackendError. Any thread may use the device; it is closed once, when
    no other thread uses it.

    Args:
        ordinal: CUDA device number.

    Raises:
        BackendError: no driver, no pycuda, no such GPU, or the GPU failed.
    """

    def __init__(self, ordinal: int) -> None:
        try:
            import pycuda.driver as cuda
        except ImportError as error:
            raise BackendError(
                f"backend tensorrt: pycuda cannot be loaded ({error}); pip install 'streamd[trt]'"
            ) from error
        self.ordinal = ordinal
        self._cuda = cuda
        self._api = _driver_api()
        self._calls = Calls(self._api, ordinal)
        self._owned: list[Any] = []
        self._asking = threading.Lock()
        self._ask_at = 0.0
        self._recent = 0, 0
        self._context: Any = None
        self.device_bytes = 0
        """Device memory allocated through this object."""
        self.pinned_bytes = 0
        """Page-locked memory allocated through this object."""
        try:
            cuda.init()
            count = cuda.Device.count()
            if ordinal >= count:
                raise BackendError(
                    f"backend tensorrt: engine.device is {ordinal}, but there are {count} GPUs (numbered from 0)"
                )
            device = cuda.Device(ordinal)
            self._claim_flags()
            self._context = device.retain_primary_context()
            self.name = str(device.name())
            self.capability = tuple(int(v) for v in device.compute_capability())
        except cuda.Error as error:
            raise self._translated(error) from error

    def _claim_flags(self) -> None:
        """Blocking synchronisation, before the context exists: a waiting thread then costs no core."""
        set_flags = getattr(self._api, "cuDevicePrimaryCtxSetFlags_v2", self._api.cuDevicePrimaryCtxSetFlags)
        status = set_flags(self.ordinal, _SCHED_BLOCKING_SYNC)
        flags, active = ctypes.c_uint(), ctypes.c_int()
        self._api.cuDevicePrimaryCtxGetState(self.ordinal, ctypes.byref(flags), ctypes.byref(active))
        if flags.value != _SCHED_BLOCKING_SYNC:
            log.warning(
                "the GPU's primary context has other flags: hardware decoding will fail",
                device=self.ordinal, flags=flags.value, active=bool(active.value), status=status,
                advice="open the backend before anything else in this process uses CUDA",
            )  # fmt: skip

    def _translated(self, error: BaseException) -> BackendError:
        text = str(error) or type(error).__name__
        if isinstance(error, self._cuda.MemoryError):
            free, total = self._memory()
            text += f" ({free >> 20} of {total >> 20} MiB free); lower engine.slots or batch.max"
        return BackendError(f"backend tensorrt: GPU {self.ordinal}: {text}")

    def _memory(self) -> tuple[int, int]:
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        # Not pycuda's: it would hold the interpreter lock while it waits for a driver that creates decoders.
        if self._api.cuMemGetInfo_v2(ctypes.byref(free), ctypes.byref(total)):
            return 0, 0
        return free.value, total.value

    def __enter__(self) -> Device:
        self._context.push()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        translated = self._translated(error) if isinstance(error, self._cuda.Error) else None
        try:
            self._cuda.Context.pop()
        except self._cuda.Error as failed:
            if error is None:
                raise self._translated(failed) from failed
        if translated is not None:
            raise translated from error

    def memory(self) -> tuple[int, int]:
        """Free and total memory of the GPU in bytes, over all processes."""
        with self:
            return self._memory()

    def recent_memory(self) -> tuple[int, int]:
        """Like `memory`, but up to a second old, or older while another thread waits for the driver: for metrics."""
        if self._asking.acquire(blocking=False):
            try:
                now = time.monotonic()
                if now >= self._ask_at:
                    self._ask_at = now + MEMORY_S
                    self._recent = self.memory()
            finally:
                self._asking.release()
        return self._recent

    def stream(self) -> Stream:
        """A new stream."""
        with self:
            return self._own(Stream(self._calls, self._cuda.Stream(_NON_BLOCKING)))

    def event(self) -> Event:
        """A new event."""
        with self:
            return self._own(Event(self._calls))

    def allocate(self, size: int) -> DeviceBuffer:
        """Device memory, zeroed."""
        size = max(size, 1)
        with self:
            buffer = DeviceBuffer(self._cuda.mem_alloc(size), size)
            # On the legacy stream, which ours do not wait for; and it may return before the memory is zeroed.
            self._cuda.memset_d8(buffer.address, 0, size)
            zeroed = Event(self._calls)
            zeroed.record(None)
            zeroed.synchronize()
            zeroed.close()
        self.device_bytes += size
        return self._own(buffer)

    def allocate_pinned(self, size: int) -> PinnedBuffer:
        """Page-locked host memory, zeroed."""
        size = max(size, 1)
        with self:
            array = self._cuda.pagelocked_empty(size, np.uint8)
        array[:] = 0
        self.pinned_bytes += size
        return self._own(PinnedBuffer(array))

    def free(self, buffer: DeviceBuffer | PinnedBuffer) -> None:
        """Frees memory; nothing enqueued may still use it."""
        if buffer.raw is None:
            return
        if isinstance(buffer, PinnedBuffer):
            self.pinned_bytes -= buffer.size
        else:
            self.device_bytes -= buffer.size
        self._owned.remove(buffer)
        with self:
            buffer.close()

    def _own(self, thing: T) -> T:
        self._owned.append(thing)
        return thing

    def kernels(self, ptx: bytes, wanted: dict[str, str]) -> dict[str, Kernel]:
        """Compiles PTX for this GPU and returns its functions.

        Args:
            ptx: zero-terminated.
            wanted: function name -> struct characters of its parameters.

        Raises:
            BackendError: the driver cannot compile it, or a function is missing.
        """
        try:
            with self:
                module = self._own(Module(self._calls, ptx))
                return {name: module.kernel(name, arguments) for name, arguments in wanted.items()}
        except BackendError as error:
            raise BackendError(
                f"{error} while compiling the kernels; they need a driver of CUDA 11.8 or later and a GPU of compute "
                "capability 6.0 or later"
            ) from error

    def check(self, status: int, what: str) -> None:
        """See `Calls.check`."""
        self._calls.check(status, what)

    def addresses(self, names: Sequence[str]) -> list[int]:
        """Where the driver's functions are, for compiled code that calls them."""
        return [ctypes.cast(getattr(self._api, name), ctypes.c_void_p).value or 0 for name in names]

    @property
    def context(self) -> int:
        """CUcontext: what `with device:` makes current."""
        current = ctypes.c_void_p()
        with self:
            self.check(self._api.cuCtxGetCurrent(ctypes.byref(current)), "cuCtxGetCurrent")
        return current.value or 0

    def to_device(self, stream: Stream, target: int, source: npt.NDArray[np.uint8]) -> None:
        """Enqueues a copy of pinned bytes to a device address."""
        self._cuda.memcpy_htod_async(target, source, stream.raw)

    def to_host(self, stream: Stream, target: npt.NDArray[np.uint8], source: int) -> None:
        """Enqueues a copy from a device address to pinned bytes."""
        self._cuda.memcpy_dtoh_async(target, source, stream.raw)

    def zero(self, stream: Stream, target: int, size: int) -> None:
        """Enqueues zeroing."""
        self._cuda.memset_d8_async(target, 0, size, stream.raw)

    def graphs(self) -> Any:
        """What `capture` needs; None, with a log line, if cuda-bindings is not installed."""
        try:
            from cuda.bindings import driver

            _checked(driver, driver.cuDriverGetVersion(), "version")
        except (ImportError, BackendError, RuntimeError) as error:
            log.info("CUDA graphs are disabled", reason=f"cuda-bindings: {error}", advice="pip install cuda-bindings")
            return None
        return driver

    def capture(self, api: Any, stream: Stream, work: Callable[[], None]) -> Graph:
        """Runs `work`, which enqueues on `stream` only, and captures it as a graph instead of executing it.

        Args:
            api: from `graphs`.

        Raises:
            BackendError: something in it cannot be captured.
        """
        handle = api.CUstream(stream.handle)
        # Thread-local: decoders that allocate on other threads meanwhile do not invalidate the capture.
        mode = api.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        with self:
            _checked(api, api.cuStreamBeginCapture(handle, mode), "graph capture")
            try:
                work()
            except BaseException:
                api.cuStreamEndCapture(handle)
                raise
            graph = _checked(api, api.cuStreamEndCapture(handle), "graph capture")
            try:
                executable = _checked(api, api.cuGraphInstantiate(graph, 0), "graph instantiation")
            finally:
                api.cuGraphDestroy(graph)
        return self._own(Graph(self._calls, api, executable, stream))

    def discard(self, graph: Graph) -> None:
        """Frees a graph."""
        self._owned.remove(graph)
        with self:
            graph.close()

    def close(self) -> None:
        """Frees everything allocated here and releases the context. Idempotent."""
        context, self._context = self._context, None
        if context is None:
            return
        cuda, api = self._cuda, self._api
        # pycuda releases the context only on the thread that retained it, and leaves it pushed. Our own reference
        # therefore keeps it alive until it has been popped, whichever thread this is.
        kept, top = ctypes.c_void_p(), ctypes.c_void_p()
        api.cuDevicePrimaryCtxRetain(ctypes.byref(kept), self.ordinal)
        try:
            context.push()
            while self._owned:
                self._owned.pop().close()
            context.detach()
        except cuda.Error as error:
            log.warning("the CUDA context did not close cleanly", device=self.ordinal, error=str(error))
        finally:
            self._owned.clear()
            self.device_bytes = self.pinned_bytes = 0
            if api.cuCtxGetCurrent(ctypes.byref(top)) == 0 and top.value == kept.value:
                api.cuCtxPopCurrent_v2(ctypes.byref(top))
            api.cuDevicePrimaryCtxRelease_v2(self.ordinal)
