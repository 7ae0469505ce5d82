"""A wall clock of a process that the test steps; monotonic time goes on as it is."""

from __future__ import annotations

import glob
from pathlib import Path

from tests.conftest import absent


class WallClock:
    """As the machine's, until it is stepped.

    Args:
        folder: for the file that says by how much.
        stat: False: times of files stay true.
    """

    def __init__(self, folder: Path, *, stat: bool = True) -> None:
        library = next(iter(glob.glob("/usr/lib/*/faketime/libfaketimeMT.so.1")), None)
        if library is None:
            absent("libfaketime is not installed (apt-get install libfaketime)")
        self._offset = folder / "offset"
        self.step(0)
        self.command = [
            "env", f"LD_PRELOAD={library}", f"FAKETIME_TIMESTAMP_FILE={self._offset}", "FAKETIME_NO_CACHE=1",
            "FAKETIME_DONT_FAKE_MONOTONIC=1", *(() if stat else ("NO_FAKE_STAT=1",)),
        ]  # fmt: skip
        """Runs the command that follows it with this clock."""

    def step(self, seconds: int) -> None:
        """It is so far from the machine's from now on."""
        self._offset.with_suffix(".new").write_text(f"{seconds:+d}\n")
        self._offset.with_suffix(".new").replace(self._offset)
