"""File systems that hang, as a network's do: whoever watches the thread that reads is told."""

from __future__ import annotations

import contextlib
import fcntl
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from streamd.sources.av import AvStreamSettings
from streamd.sources.av_connection import FILE_LIMIT_S, AvConnection
from streamd.sources.av_source import AvSource
from streamd.sources.part_search import search_of
from tests.clips import write_clip


@contextlib.contextmanager
def hanging(path: Path) -> Iterator[None]:
    """Whoever opens the file waits: somebody else has a lease on it."""
    before = signal.signal(signal.SIGIO, signal.SIG_IGN)
    file = os.open(path, os.O_RDONLY)
    try:
        try:
            fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        except OSError as error:
            pytest.skip(f"no leases on this file system: {error}")
        yield
    finally:
        os.close(file)
        signal.signal(signal.SIGIO, before)


def opened(source: AvSource) -> object:
    return source.open()


def searched(source: AvSource) -> object:
    connection = source._connection
    return search_of(connection.settings.url, connection.closed.is_set, connection.limited)


@pytest.mark.parametrize("access", [opened, searched])
def test_an_access_that_hangs_has_a_deadline(tmp_path: Path, access: Callable[[AvSource], object]) -> None:
    path = write_clip(tmp_path / "clip.flv")
    source = AvSource(AvStreamSettings(id="s", url=str(path)))
    thread = threading.Thread(target=access, args=(source,))
    with hanging(path):
        thread.start()
        until = time.monotonic() + 10
        while source.deadline == math.inf and time.monotonic() < until:
            time.sleep(0.01)
        assert thread.is_alive()
        assert 0 < source.deadline - time.monotonic() < FILE_LIMIT_S
    thread.join(10)
    assert not thread.is_alive()
    assert source.deadline == math.inf
    source.close()
    source._release()


def test_the_deadline_of_opening_stays(tmp_path: Path) -> None:
    connection = AvConnection(AvStreamSettings(id="s", url="clip.flv"), threading.Event(), alone=True)
    connection.deadline = sooner = time.monotonic() + 1
    with connection.limited():
        assert connection.deadline == sooner
    assert connection.deadline == sooner
