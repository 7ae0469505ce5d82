"""A target that does everything that must be noticed."""

from __future__ import annotations

import ctypes
import time
from pathlib import Path

from fuzzing.target import Target

from streamd.errors import ConfigError


class Harmful(Target):
    """Each of its inputs says what it does."""

    name = "harmful"
    limit_s = 1.0

    @classmethod
    def seeds(cls, folder: Path) -> list[bytes]:
        return [b"good", b"refuse", b"raise", b"hang", b"crash", b"good"]

    def run(self, data: bytes) -> None:
        if data == b"refuse":
            raise ConfigError("no")
        if data == b"raise":
            raise KeyError("odd")
        if data == b"hang":
            time.sleep(60)
        if data == b"crash":
            ctypes.string_at(0)
