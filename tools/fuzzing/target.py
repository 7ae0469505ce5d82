"""What is fuzzed: one class a format."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any


class Target:
    """Feeds input to one reader of the program.

    `run` returns where the input was taken and raises a StreamdError where it was refused; whatever else comes out of
    it is a finding, and so is taking longer than `limit_s`, or the end of the process.
    """

    name = ""
    what = ""
    """What reads the input, for the report."""
    text = False
    tokens: Sequence[bytes] = ()
    limit_s = 10.0
    share = 1.0
    """How many inputs it gets, by the mean of all targets."""
    least = 10
    """Even in the shortest run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @classmethod
    def seeds(cls, folder: Path) -> list[bytes]:
        """Good inputs; `folder` is for what has to be written on the way."""
        raise NotImplementedError

    def open(self) -> None:
        """Once, before the first input."""

    def run(self, data: bytes) -> None:
        """One input."""
        raise NotImplementedError

    def close(self) -> None:
        """Once, after the last input."""

    def file(self, name: str, data: bytes) -> Path:
        """`data` as a file of its own."""
        path = self.folder / name
        path.write_bytes(data)
        return path


def as_json(value: Any) -> bytes:
    """A seed."""
    return json.dumps(value, indent=1).encode()
