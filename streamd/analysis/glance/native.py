"""The small picture in C (`glance.c`), where it was compiled; called without the interpreter lock."""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path
from typing import Any

from streamd.analysis.compiled import compiled

_POINTER, _COUNT = ctypes.c_void_p, ctypes.c_int64


@functools.cache
def library(path: str | None = None) -> tuple[Any, Any] | None:
    """The compiled functions for samples of 8 and of 16 bits; None where there are none.

    Args:
        path: of the file; the one that was built with the package by default.
    """
    functions = compiled(Path(__file__).with_name("_glance"), ("glance_8", "glance_16"), path)
    if functions is None:
        return None
    for function in functions:
        function.argtypes = [
            _POINTER, _COUNT, _COUNT, _POINTER, _POINTER, _COUNT, _POINTER, _COUNT, _POINTER, _POINTER,
        ]  # fmt: skip
        function.restype = None
    bits_8, bits_16 = functions
    return bits_8, bits_16
