"""A log that nobody reads stops nothing, and what is lost of it is counted."""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from streamd.telemetry.outlet import MAX_BACKLOG, Outlet, lines_lost

LINE = "x" * 199 + "\n"


@pytest.fixture
def pipe() -> Iterator[tuple[int, Outlet]]:
    """A pipe's end to read from, and an outlet into it."""
    reader, writer = os.pipe()
    out = io.TextIOWrapper(io.FileIO(writer, "w"), write_through=True)
    yield reader, Outlet(out)
    os.close(reader)
    out.close()


def read(reader: int, size: int) -> bytes:
    data = b""
    while len(data) < size and (piece := os.read(reader, 1 << 16)):
        data += piece
    return data


def test_a_reader_gets_every_line_in_order(pipe: tuple[int, Outlet]) -> None:
    reader, outlet = pipe
    expected = "".join(f"{i:05d} {LINE}" for i in range(2000))

    def write() -> None:
        for i in range(2000):
            outlet.write(f"{i:05d} {LINE}")

    threading.Thread(target=write).start()
    assert read(reader, len(expected)).decode() == expected


def test_nobody_waits_for_a_reader_that_does_not_read(pipe: tuple[int, Outlet]) -> None:
    reader, outlet = pipe
    before = lines_lost()
    many = (MAX_BACKLOG + (1 << 17)) // len(LINE) * 2
    began = time.monotonic()
    for i in range(many):
        outlet.write(f"{i:06d} {LINE}")
    assert time.monotonic() - began < 5
    lost = lines_lost() - before
    assert 0 < lost < many
    # The reader comes back: whole lines, in order, and how many it has missed.
    kept = many - lost
    lines = read(reader, kept * (len(LINE) + 7) + 20).decode().splitlines()
    assert [int(line[:6]) for line in lines[:kept]] == list(range(kept))
    assert f'"lines": {lost}' in lines[kept]
    outlet.write("again\n")
    assert read(reader, 6).endswith(b"again\n")


def test_the_parents_description_stays_as_it_was(pipe: tuple[int, Outlet]) -> None:
    """The flag belongs to the description, and standard error is shared with whoever started us."""
    _, outlet = pipe
    descriptor = outlet._out.fileno()
    assert not fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_NONBLOCK


def test_a_reader_that_has_gone_costs_nothing(pipe: tuple[int, Outlet]) -> None:
    reader, outlet = pipe
    holder = os.dup(reader)
    os.dup2(os.open(os.devnull, os.O_RDONLY), reader)
    os.close(holder)
    before = lines_lost()
    outlet.write(LINE)
    assert lines_lost() == before + 1


def test_a_socket_as_of_journald() -> None:
    ours, theirs = socket.socketpair()
    out = io.TextIOWrapper(io.FileIO(theirs.fileno(), "w", closefd=False), write_through=True)
    outlet = Outlet(out)
    began = time.monotonic()
    for _ in range(10_000):
        outlet.write(LINE)
    assert time.monotonic() - began < 5
    assert ours.recv(len(LINE)).decode() == LINE
    ours.close()
    theirs.close()


def test_the_end_gives_a_slow_reader_a_moment(pipe: tuple[int, Outlet]) -> None:
    reader, outlet = pipe
    for i in range(1000):
        outlet.write(f"{i:06d} {LINE}")
    got: list[bytes] = []
    threading.Timer(0.2, lambda: got.append(read(reader, 1000 * (len(LINE) + 7)))).start()
    outlet.drain(5)
    time.sleep(0.3)
    assert len(got[0]) == 1000 * (len(LINE) + 7)


def test_an_end_that_nobody_reads_is_not_waited_for(pipe: tuple[int, Outlet]) -> None:
    _, outlet = pipe
    for _ in range(1000):
        outlet.write(LINE)
    began = time.monotonic()
    outlet.drain(0.3)
    assert time.monotonic() - began < 1


def test_the_end_waits_for_a_line_that_is_just_being_written(
    pipe: tuple[int, Outlet], monkeypatch: pytest.MonkeyPatch
) -> None:
    reader, outlet = pipe
    put, writing = Outlet._put, threading.Event()

    def slowly(self: Outlet, data: bytes) -> bytes:
        if threading.current_thread().name == "log" and not writing.is_set():
            writing.set()
            time.sleep(0.3)
        return put(self, data)

    monkeypatch.setattr(Outlet, "_put", slowly)
    line = "y" * 100_000 + "\n"
    outlet.write(line)
    assert writing.wait(5)
    os.set_blocking(reader, False)
    got, deadline = b"", time.monotonic() + 10
    while outlet._waiting and time.monotonic() < deadline:
        with contextlib.suppress(BlockingIOError):
            got += os.read(reader, 1 << 20)
        outlet.drain(0.01)
    with contextlib.suppress(BlockingIOError):
        got += os.read(reader, 1 << 20)
    assert (len(got), got == line.encode()) == (len(line), True)


def test_a_full_disk_costs_lines_which_are_counted() -> None:
    lost = lines_lost()
    out = io.TextIOWrapper(io.FileIO("/dev/full", "w"), write_through=True)
    outlet = Outlet(out)
    for _ in range(3):
        outlet.write(LINE)
    outlet.flush()
    assert lines_lost() == lost + 3
    with contextlib.suppress(OSError):
        out.close()
