"""Functions in C that were compiled when streamd was installed, if there was a compiler."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt


def compiled(
    built: Path, names: tuple[str, ...], path: str | None = None, *, hold: bool = False
) -> tuple[Any, ...] | None:
    """The functions of a library; None where it was not built, or was built for another machine.

    Args:
        built: the library as it is built with the package, without a suffix.
        names: the functions.
        path: another file to take instead.
        hold: calls keep the interpreter lock. For what takes a few microseconds: a thread that lets go of the lock gets
            it back at the next switch only, half a millisecond later in a busy process.
    """
    files = [path] if path else [f"{built}{suffix}" for suffix in EXTENSION_SUFFIXES]
    found = next((file for file in files if Path(file).is_file()), None)
    if found is None:
        return None
    try:
        loaded = ctypes.PyDLL(found) if hold else ctypes.CDLL(found)
        return tuple(getattr(loaded, name) for name in names)
    except (OSError, AttributeError):
        return None


def either_way(built: Path, name: str, arguments: Sequence[Any], path: str | None = None) -> tuple[Any, Any] | None:
    """A function that returns an int64, twice: called with the interpreter lock, and without; None as in `compiled`.

    Args:
        built, path: see `compiled`.
        name: the function.
        arguments: their types.
    """
    found = [compiled(built, (name,), path, hold=hold) for hold in (True, False)]
    functions = [each[0] for each in found if each is not None]
    if len(functions) < len(found):
        return None
    for function in functions:
        function.argtypes, function.restype = [*arguments], ctypes.c_int64
    return functions[0], functions[1]


def joined_bytes(arrays: Sequence[npt.NDArray[Any]], size: int, types: Sequence[np.dtype[Any]]) -> bytes:
    """The content of arrays, one after the other: half the time of joining them with NumPy, and ctypes passes it on.

    Args:
        arrays: without gaps in most cases; as many of each type.
        size: of all, in bytes.
        types: that they are expected to have, and are converted to otherwise.

    Raises:
        ValueError: they are not of this size then.
    """
    buffers: Any = arrays
    each = len(arrays) // len(types)
    try:
        joined = b"".join(buffers)
    except (BufferError, TypeError):  # gaps
        joined = b""
    # All arrays of a kind have one origin: the first of each tells their type.
    if len(joined) != size or [a.dtype for a in arrays[:: max(1, each)]] != [*types]:
        buffers = [np.ascontiguousarray(a, types[i // each]) for i, a in enumerate(arrays)]
        joined = b"".join(buffers)
    if len(joined) != size:
        raise ValueError(f"arrays of {len(joined)} bytes, expected {size}")
    return joined


def address_of(array: npt.NDArray[Any]) -> int:
    """Of its first value."""
    address: int = array.__array_interface__["data"][0]  # a third of what `ctypes.data` takes
    return address
