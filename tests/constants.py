"""Whether a test changes a constant of streamd for those after it, in the same process."""

from __future__ import annotations

import sys
from pathlib import Path

_PLAIN = (bool, int, float, str, bytes, tuple, frozenset, Path)

Constants = dict[tuple[str, str], object]
"""By module and name."""


def constants() -> Constants:
    """What the modules of streamd that are loaded define in capital letters, as far as it cannot change itself."""
    return {
        (name, constant): value
        for name, module in list(sys.modules.items())
        if name.partition(".")[0] == "streamd"
        for constant, value in vars(module).items()
        if constant.isupper() and isinstance(value, _PLAIN)
    }


def changed(before: Constants) -> list[str]:
    """Those that have another value than before, as MODULE.NAME."""
    now = constants()
    return [".".join(key) for key, value in before.items() if (new := now.get(key)) is not value and new != value]
