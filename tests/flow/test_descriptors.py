"""Connections of streams leave descriptors to the rest of the process.

Each test runs in a process of its own: here, threads of other tests may open descriptors at any time.
"""

from __future__ import annotations

import contextlib
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from streamd.flow import descriptors
from streamd.flow.descriptors import EACH, RESERVE, room


def _take(stack: contextlib.ExitStack, count: int) -> None:
    for _ in range(count):
        stack.enter_context(open(os.devnull))  # noqa: SIM115 - the stack is the context manager


def _settle() -> None:
    """Until no connection counts as under way any more."""
    time.sleep(descriptors._SOON_S + 0.1)


@contextlib.contextmanager
def _limited() -> Iterator[contextlib.ExitStack]:
    """A process with room for two connections, and what it takes besides."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.ExitStack() as taken:
        _take(taken, 64)  # so that the reserve is not a quarter of the limit
        used = len(os.listdir("/proc/self/fd"))
        resource.setrlimit(resource.RLIMIT_NOFILE, (used + 2 * EACH + RESERVE, hard))
        with contextlib.ExitStack() as further:
            yield further
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def _connections_under_way() -> None:
    with _limited() as limited:
        assert [room() for _ in range(4)] == [True, True, False, False]
        _take(limited, EACH + 1)
        _settle()
        assert not room(), "there is room for fewer than a whole connection"
        limited.close()
        assert room()


def _none_left() -> None:
    with _limited() as limited:
        with pytest.raises(OSError, match="Too many open files"):
            _take(limited, 1000)
        assert not room()


def _no_limit_or_no_proc() -> None:
    with _limited() as limited, pytest.MonkeyPatch.context() as patch:
        _take(limited, 2 * EACH)
        assert not room()
        with patch.context() as other:
            other.setattr(descriptors, "_IN_USE", "/nowhere")
            assert room()
        with patch.context() as other:
            other.setattr(resource, "getrlimit", lambda _: (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            assert room()


def _alone(body: Callable[[], None]) -> None:
    command = [sys.executable, "-c", f"from {__name__} import {body.__name__} as body; body()"]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], stderr=subprocess.PIPE, text=True)
    assert done.returncode == 0, done.stderr


def test_connections_under_way_count_until_they_have_their_descriptors() -> None:
    _alone(_connections_under_way)


def test_where_none_is_left_there_is_no_room() -> None:
    _alone(_none_left)


def test_without_a_limit_or_without_proc_there_is_room() -> None:
    _alone(_no_limit_or_no_proc)
