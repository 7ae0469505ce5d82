"""Whether a file or folder could be written, without writing anything."""

from __future__ import annotations

import os
import stat
from pathlib import Path


def unwritable_file(path: Path) -> str | None:
    """Why `path` cannot be opened for writing, in words; None if nothing is known against it."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        if not path.parent.is_dir():
            return f"{path.parent} is not a folder; create it"
        return None if os.access(path.parent, os.W_OK | os.X_OK) else f"{path.parent} cannot be written; {_WHOSE}"
    except OSError as error:
        return f"{path}: {error.strerror}; {_WHOSE}"
    if stat.S_ISDIR(mode):
        return f"{path} is a folder; expected a file"
    return None if os.access(path, os.W_OK) else f"{path} cannot be written; {_WHOSE}"


def unwritable_folder(path: Path) -> str | None:
    """The same for a folder in which files are to be made, and which is made if it does not exist."""
    there = path
    while not there.exists() and there != there.parent:
        there = there.parent
    if not there.is_dir():
        return f"{there} is not a folder; expected one"
    if not os.access(there, os.W_OK | os.X_OK):
        return f"{there} cannot be written; {_WHOSE}"
    return None


_WHOSE = "check its owner and mode, and that its file system is not read-only"
