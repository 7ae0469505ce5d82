"""Functions in C that were compiled when streamd was installed, if there was a compiler."""

from __future__ import annotations

import ctypes
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any


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
