"""Log lines, written to a reader that may stall or stop."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from pathlib import Path

from fuzzing.target import Target

_LONGEST_S = 5.0
"""Time limit for one line in seconds, whatever the reader does; generous, for a busy machine."""


class Logs(Target):
    """The first byte selects a pipe or a socket; then an operation and its argument, up to the next newline.

    l writes a line, b a line of 100 kB, r reads some, d waits until all is read, x makes the reader go away.
    """

    name = "logs"
    what = "log lines to a pipe or socket whose reader stalls, leaves, or takes a little"
    limit_s = 20.0
    tokens = (b"\nl", b"\nb", b"\nr", b"\nd", b"\nx", b"\xff", b"\xed\xa0\x80", b"\0", b"\r", b"\nb" * 30, b"\nr" * 30)

    @classmethod
    def seeds(cls, folder: Path) -> list[bytes]:
        return [
            b"plhello\nlworld\nd",
            b"s" + b"lone\nb\n" * 14 + b"r\nr\nr\nd\nlmore\nd",
            b"p" + b"b\n" * 14 + b"lkept\nx\nlgone",
            b"pb\nb\nr\nlbetween\nr\nd",
        ]

    def run(self, data: bytes) -> None:
        from streamd.telemetry import outlet

        if data[:1] == b"s":
            ours, theirs = socket.socketpair()
            reader, writer = ours.detach(), theirs.detach()
        else:
            reader, writer = os.pipe()
        os.set_blocking(reader, False)
        lost = outlet.lines_lost()
        got, written, gone = bytearray(), 0, False

        def read(size: int) -> None:
            with contextlib.suppress(BlockingIOError):
                got.extend(os.read(reader, size))

        with open(writer, "w", encoding="utf-8") as out:
            taker = outlet.Outlet(out)
            for operation in data[1:].split(b"\n")[:300]:
                kind, rest = operation[:1], operation[1:]
                if kind in (b"l", b"b"):
                    text = rest.decode("utf-8", "surrogateescape") if kind == b"l" else "x" * 100_000
                    began = time.monotonic()
                    taker.write(f"{written}:{text}\n")
                    assert time.monotonic() - began < _LONGEST_S, "a line waited for its reader"
                    written += 1
                elif kind == b"x" and not gone:
                    os.close(reader)
                    gone = True
                elif not gone and kind == b"r":
                    read(30_000)
                elif not gone and kind == b"d":
                    self._drain(taker, read)
            if not gone:
                self._drain(taker, read)
            taker.drain(1)
            assert taker._waiting <= outlet.MAX_BACKLOG
            if taker._socket is not None:
                taker._socket.close()
            elif taker._descriptor is not None:
                os.close(taker._descriptor)
        if gone:
            return
        read(1 << 20)
        os.close(reader)
        self._check(bytes(got), written, outlet.lines_lost() - lost)

    def _drain(self, taker: object, read: object) -> None:
        deadline = time.monotonic() + 10
        while taker._waiting:  # type: ignore[attr-defined]
            assert time.monotonic() < deadline, "lines stay where they are although the reader reads"
            read(1 << 20)  # type: ignore[operator]
            taker.drain(0.01)  # type: ignore[attr-defined]
        read(1 << 20)  # type: ignore[operator]

    def _check(self, got: bytes, written: int, lost: int) -> None:
        """Checks that the received lines are complete and in order, and that all others were counted as lost."""
        numbers = []
        for line in got.split(b"\n"):
            number, colon, _ = line.partition(b":")
            if colon and number.isdigit():
                numbers.append(int(number))
        assert numbers == sorted(set(numbers)), "lines are out of order"
        assert len(numbers) + lost == written, f"{len(numbers)} lines came and {lost} were lost, of {written}"


TARGETS: tuple[type[Target], ...] = (Logs,)
