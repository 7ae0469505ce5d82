"""The calling thread's stack for signal handlers, kept from a library that exchanges it.

OpenVINO gives the thread that compiles a model another one, and gives back what it found when the model goes. Two
models that do not go in the reverse order of their coming leave the thread with a stack that is no longer there, and
the next signal, a Ctrl-C or SIGTERM, is a segmentation fault: Python's handlers run on that stack.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator


class _Stack(ctypes.Structure):
    """stack_t"""

    _fields_ = (("address", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))


def signal_stack() -> tuple[int, int, int]:
    """Address (0 for none), flags and bytes of the calling thread's."""
    found = _Stack()
    if (ask := getattr(ctypes.CDLL(None), "sigaltstack", None)) is not None:
        ask(None, ctypes.byref(found))
    return found.address or 0, found.flags, found.size


@contextlib.contextmanager
def signal_stack_kept() -> Iterator[None]:
    """The calling thread has the same one after the block as before."""
    before = signal_stack()
    try:
        yield
    finally:
        if signal_stack() != before:
            ctypes.CDLL(None).sigaltstack(ctypes.byref(_Stack(*before)), None)
