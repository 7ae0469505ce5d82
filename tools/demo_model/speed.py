"""Measures, compiles and records: what makes a step fast, and what to do where it fails."""

from __future__ import annotations

import sys
import time
import traceback
from collections.abc import Callable
from typing import Any

import torch


def profile(call: Callable[[], Any], repeat: int = 3) -> float:
    """Seconds of a call: the least of `repeat`, each waited for; the first, which warms up, does not count."""
    best = float("inf")
    for i in range(repeat + 1):
        _wait()
        begun = time.perf_counter()
        call()
        _wait()
        if i:
            best = min(best, time.perf_counter() - begun)
    return best


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def attempt(call: Callable[[], Any]) -> str | None:
    """Calls what training can do without, as compiled code; prints what failed, and returns its last line or None."""
    try:
        call()
    except Exception as error:  # noqa: BLE001 - a compiler has many ways to fail, and training needs none of it
        traceback.print_exc(file=sys.stdout)  # what failed first can be the context of what is raised
        return (str(error).splitlines() or [repr(error)])[0]
    return None


class Recorder:
    """Work recorded as a CUDA graph: each call replays it.

    Args:
        work: what to record, on tensors that stay where they are; it must not wait for the device, nor draw random
            numbers.
    """

    def __init__(self, work: Callable[[], Any]) -> None:
        # One stream for the rehearsal and the recording: gradients are added up on the stream on which they were first.
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                work()
        torch.cuda.synchronize()
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, stream=side, capture_error_mode="thread_local"):
            work()
        torch.cuda.synchronize()

    def __call__(self) -> None:
        """Replays the work."""
        self._graph.replay()
