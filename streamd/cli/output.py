"""Standard output and error of a command: what happens to them does not decide how the command ends."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Iterator
from typing import Any, cast


class Output(io.RawIOBase):
    """A descriptor that takes everything: after a write that failed, what follows is discarded.

    Args:
        descriptor: of an open file; it stays open.
    """

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self._descriptor = descriptor
        self.error: OSError | None = None
        """Why something could not be written."""
        self.strict = False
        """The first write that fails raises: for commands that go on until nobody reads them any more."""

    def fileno(self) -> int:
        """See `io.RawIOBase`."""
        return self._descriptor

    def isatty(self) -> bool:
        """See `io.RawIOBase`."""
        return os.isatty(self._descriptor)

    def writable(self) -> bool:
        """See `io.RawIOBase`."""
        return True

    def write(self, data: bytes) -> int:  # type: ignore[override]  # as what io calls it with
        """Writes everything, or discards it.

        Raises:
            OSError: it could not be written, and `strict` is set.
        """
        view = memoryview(data).cast("B")
        done = 0
        while done < len(view) and self.error is None:
            try:
                done += os.write(self._descriptor, view[done:])
            except OSError as error:
                self.error = error
                if self.strict:
                    raise
        return len(view)


def _stream(own: io.TextIOWrapper) -> tuple[io.TextIOWrapper, Output]:
    raw = Output(own.fileno())
    buffer: Any = (
        raw
        if own.write_through and not isinstance(own.buffer, io.BufferedWriter)
        else io.BufferedWriter(cast("Any", raw))
    )
    stream = io.TextIOWrapper(
        buffer, own.encoding, own.errors, "\n", line_buffering=own.line_buffering, write_through=own.write_through
    )
    return stream, raw


@contextlib.contextmanager
def outputs() -> Iterator[Output | None]:
    """Replaces standard output and error until the block ends; None if standard output is somebody else's."""
    own = sys.stdout, sys.stderr
    raw = None
    if all(type(each) is io.TextIOWrapper for each in own):
        sys.stdout.flush()
        sys.stdout, raw = _stream(sys.stdout)  # type: ignore[arg-type]
        sys.stderr, _ = _stream(sys.stderr)  # type: ignore[arg-type]
    try:
        yield raw
    finally:
        if raw is not None:
            with contextlib.suppress(OSError):
                sys.stdout.flush()
            sys.stderr.flush()
            sys.stdout, sys.stderr = own
