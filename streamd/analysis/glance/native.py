"""The small picture in C (`glance.c`), where it was compiled; called without the interpreter lock."""

from __future__ import annotations

import ctypes
import functools
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any

_POINTER, _COUNT = ctypes.c_void_p, ctypes.c_int64


@functools.cache
def library(path: str | None = None) -> tuple[Any, Any] | None:
    """The compiled functions for samples of 8 and of 16 bits; None where there are none.

    Args:
        path: of the file; the one that was built with the package by default.
    """
    folder = Path(__file__).parent
    names = [path] if path else [str(folder / f"_glance{suffix}") for suffix in EXTENSION_SUFFIXES]
    found = next((name for name in names if Path(name).is_file()), None)
    if found is None:
        return None
    try:
        loaded = ctypes.CDLL(found)
        functions = loaded.glance_8, loaded.glance_16
    except (OSError, AttributeError):
        return None  # built for another machine
    for function in functions:
        function.argtypes = [
            _POINTER, _COUNT, _COUNT, _POINTER, _POINTER, _COUNT, _POINTER, _COUNT, _POINTER, _POINTER,
        ]  # fmt: skip
        function.restype = None
    return functions
