"""Fuzz targets: one class per format."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any


class Target:
    """Feeds input to one parser of the program.

    `run` returns where the input was taken and raises a StreamdError where it was refused; whatever else comes out of
    it is a finding, and so is taking longer than `limit_s`, or the end of the process.
    """

    name = ""
    what = ""
    """Name of the tested parser, for the report."""
    text = False
    tokens: Sequence[bytes] = ()
    limit_s = 10.0
    share = 1.0
    """Share of inputs, relative to the mean of all targets."""
    least = 10
    """Minimum number of inputs, even in the shortest run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @classmethod
    def seeds(cls, folder: Path) -> list[bytes]:
        """Valid inputs; `folder` is for temporary files."""
        raise NotImplementedError

    def open(self) -> None:
        """Called once before the first input."""

    def run(self, data: bytes) -> None:
        """Processes one input."""
        raise NotImplementedError

    def close(self) -> None:
        """Called once after the last input."""

    def file(self, name: str, data: bytes) -> Path:
        """Writes `data` to a file and returns its path."""
        path = self.folder / name
        path.write_bytes(data)
        return path


def as_json(value: Any) -> bytes:
    """A seed."""
    return json.dumps(value, indent=1).encode()
