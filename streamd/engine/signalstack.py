"""Preserves the calling thread's signal stack from a library that replaces it.

OpenVINO replaces the signal stack of the thread that compiles a model, and restores the previous one when the model is
destroyed. Two models that are not destroyed in reverse order leave the thread with a stack that no longer exists, and
the next signal (Ctrl-C or SIGTERM) is a segmentation fault, because Python's handlers run on that stack.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator


class _Stack(ctypes.Structure):
    """stack_t"""

    _fields_ = (("address", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))


def signal_stack() -> tuple[int, int, int]:
    """Address (0 for none), flags and size of the calling thread's signal stack."""
    found = _Stack()
    if (ask := getattr(ctypes.CDLL(None), "sigaltstack", None)) is not None:
        ask(None, ctypes.byref(found))
    return found.address or 0, found.flags, found.size


@contextlib.contextmanager
def signal_stack_kept() -> Iterator[None]:
    """Restores the calling thread's signal stack after the block."""
    before = signal_stack()
    try:
        yield
    finally:
        if signal_stack() != before:
            ctypes.CDLL(None).sigaltstack(ctypes.byref(_Stack(*before)), None)
