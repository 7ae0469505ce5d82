"""What is needed from the CUDA driver without pycuda, through ctypes: which GPU it is, a current context, calibration
memory. Building thus needs no package besides TensorRT's own."""

from __future__ import annotations

import contextlib
import ctypes
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from streamd.errors import BackendError

_CAPABILITY_MAJOR, _CAPABILITY_MINOR = 75, 76
"""CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR."""
_SCHED_BLOCKING_SYNC = 4
"""CU_CTX_SCHED_BLOCKING_SYNC: the flags that FFmpeg's decoder requires of the primary context."""


@dataclass(frozen=True)
class Gpu:
    """One NVIDIA GPU."""

    ordinal: int
    name: str
    capability: tuple[int, int]
    driver: str
    """Version of the kernel driver, e.g. 580.95.05; the supported CUDA version if that cannot be read."""

    def __str__(self) -> str:
        return f"{self.name} (compute capability {self.capability[0]}.{self.capability[1]})"


@functools.cache
def _library() -> Any:
    """libcuda, initialised; None if there is no driver or no GPU."""
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    return cuda if cuda.cuInit(0) == 0 else None


def _check(code: int, what: str) -> None:
    if code:
        text = ctypes.c_char_p()
        _library().cuGetErrorString(code, ctypes.byref(text))
        reason = text.value.decode() if text.value else f"error {code}"
        raise BackendError(f"CUDA: {what} failed: {reason}")


def _driver_version(cuda: Any) -> str:
    with contextlib.suppress(OSError):
        fields = Path("/proc/driver/nvidia/version").read_text(encoding="utf-8").split()
        for field in fields:
            if field.count(".") >= 1 and field.replace(".", "").isdigit():
                return field
    number = ctypes.c_int()
    cuda.cuDriverGetVersion(ctypes.byref(number))
    return f"CUDA {number.value // 1000}.{number.value % 1000 // 10}"


def _device(ordinal: int) -> ctypes.c_int | None:
    """The driver's handle of a GPU, or None if there is no NVIDIA driver or no such GPU."""
    cuda, device = _library(), ctypes.c_int()
    return device if cuda is not None and cuda.cuDeviceGet(ctypes.byref(device), ordinal) == 0 else None


def find_gpu(ordinal: int = 0) -> Gpu | None:
    """The GPU, or None if there is no NVIDIA driver or no such GPU."""
    cuda, device = _library(), _device(ordinal)
    if device is None:
        return None
    name = ctypes.create_string_buffer(256)
    _check(cuda.cuDeviceGetName(name, len(name), device), "cuDeviceGetName")
    capability = []
    for attribute in (_CAPABILITY_MAJOR, _CAPABILITY_MINOR):
        value = ctypes.c_int()
        _check(cuda.cuDeviceGetAttribute(ctypes.byref(value), attribute, device), "cuDeviceGetAttribute")
        capability.append(value.value)
    return Gpu(ordinal, name.value.decode(errors="replace"), (capability[0], capability[1]), _driver_version(cuda))


def memory_mib(ordinal: int) -> int:
    """The GPU's memory in MiB; 0 if there is no such GPU. Needs no context."""
    device, size = _device(ordinal), ctypes.c_size_t()
    if device is None:
        return 0
    _check(_library().cuDeviceTotalMem_v2(ctypes.byref(size), device), "cuDeviceTotalMem")
    return size.value >> 20


@functools.cache
def _primary(ordinal: int) -> ctypes.c_void_p:
    """The device's primary context, kept for the life of the process: TensorRT's runtime library keeps using it."""
    cuda = _library()
    device, context = ctypes.c_int(), ctypes.c_void_p()
    _check(cuda.cuDeviceGet(ctypes.byref(device), ordinal), f"opening GPU {ordinal}")
    # Before it exists, or FFmpeg cannot share it later; for an existing one this changes nothing that we need.
    set_flags = getattr(cuda, "cuDevicePrimaryCtxSetFlags_v2", cuda.cuDevicePrimaryCtxSetFlags)
    set_flags(device, _SCHED_BLOCKING_SYNC)
    _check(cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), device), f"the context of GPU {ordinal}")
    return context


@contextlib.contextmanager
def current(ordinal: int) -> Iterator[None]:
    """Makes the GPU's primary context current on the calling thread: TensorRT builds for the current GPU.

    Raises:
        BackendError: there is no such GPU, or it cannot be opened.
    """
    if _library() is None:
        raise BackendError(f"GPU {ordinal}: no NVIDIA driver, or no usable GPU; check that nvidia-smi lists it")
    cuda = _library()
    _check(cuda.cuCtxPushCurrent_v2(_primary(ordinal)), "cuCtxPushCurrent")
    try:
        yield
    finally:
        cuda.cuCtxPopCurrent_v2(ctypes.byref(ctypes.c_void_p()))


class DeviceMemory:
    """A block of device memory of the current context.

    Args:
        size: bytes.

    Raises:
        BackendError: the GPU does not have enough free memory.
    """

    def __init__(self, size: int) -> None:
        pointer = ctypes.c_uint64()
        _check(_library().cuMemAlloc_v2(ctypes.byref(pointer), ctypes.c_size_t(size)), f"allocating {size} bytes")
        self.address = pointer.value
        self.size = size

    def write(self, address: int, size: int) -> None:
        """Copies `size` bytes from host memory at `address` to the start of the block."""
        if size > self.size:
            raise ValueError(f"{size} bytes into a block of {self.size}")
        code = _library().cuMemcpyHtoD_v2(
            ctypes.c_uint64(self.address), ctypes.c_void_p(address), ctypes.c_size_t(size)
        )
        _check(code, "copying to the GPU")

    def free(self) -> None:
        """Frees the block. Idempotent."""
        if self.address:
            _library().cuMemFree_v2(ctypes.c_uint64(self.address))
            self.address = 0
