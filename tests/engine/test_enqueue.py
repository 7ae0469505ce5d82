"""Driver calls through ctypes, against a library that writes down what it was given. tests/gpu has the real driver."""

from __future__ import annotations

import ctypes
import shutil
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from streamd.engine.tensorrt.enqueue import Calls, Event, Graph, Module, Stream
from streamd.errors import BackendError

STREAM = 0x7FFF_89AB_CDEF_0120
EVENT = 0x7FFF_1234_5678_ABC0
GRAPH = 0x7FFF_0000_0000_ABC3
MODULE, FUNCTION = 0x7FFF_0000_0000_ABC1, 0x7FFF_0000_0000_ABC2


class Driver:
    """The library, and what it was told last."""

    def __init__(self, path: Path) -> None:
        self._library = ctypes.CDLL(str(path))
        self.calls = Calls(ctypes.CDLL(str(path)), 3)

    def set(self, **values: int) -> None:
        for name, value in values.items():
            ctypes.c_int.in_dll(self._library, name).value = value

    def get(self, name: str) -> int:
        return ctypes.c_int.in_dll(self._library, name).value

    def seen(self, count: int) -> list[int]:
        return list((ctypes.c_uint64 * 16).in_dll(self._library, "seen")[:count])

    @property
    def name(self) -> bytes:
        return (ctypes.c_char * 64).in_dll(self._library, "name").value

    def launched(self) -> list[bytes]:
        """Parameters of every launch since `launches` was set to 0."""
        sizes = (ctypes.c_size_t * 8).in_dll(self._library, "sizes")
        values = (ctypes.c_ubyte * 64 * 8).in_dll(self._library, "parameters")
        return [bytes(values[i][: sizes[i]]) for i in range(self.get("launches"))]


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("no g++ to compile the library")
    out = tmp_path_factory.mktemp("driver") / "libcuda.so"
    source = Path(__file__).with_name("libcuda.cpp")
    subprocess.run(
        [compiler, "-std=c++11", "-O1", "-Wall", "-Werror", "-shared", "-fPIC", source, "-o", out], check=True
    )
    return out


@pytest.fixture
def driver(library: Path) -> Iterator[Driver]:
    made = Driver(library)
    made.set(status=0, wait_ms=0, released=0, launches=0)
    yield made
    made.set(status=0, wait_ms=0)


def stream_of(driver: Driver) -> Stream:
    return Stream(driver.calls, SimpleNamespace(handle=STREAM))


def test_handles_arrive_whole(driver: Driver) -> None:
    stream, event = stream_of(driver), Event(driver.calls)
    assert driver.seen(1) == [1], "waiting for it must block, not spin"
    event.record(stream)
    assert driver.seen(2) == [EVENT, STREAM]
    event.record(None)
    assert driver.seen(2) == [EVENT, 0]
    stream.wait(event)
    assert driver.seen(3) == [STREAM, EVENT, 0]
    event.synchronize()
    assert driver.seen(1) == [EVENT]
    assert event.seconds_since(event) == pytest.approx(0.0125)
    assert driver.seen(2) == [EVENT, EVENT]
    Graph(driver.calls, None, GRAPH, stream).launch()
    assert driver.seen(2) == [GRAPH, STREAM]
    event.close()
    assert driver.seen(1) == [EVENT]


def test_a_mark_is_reached_or_not_or_broken(driver: Driver) -> None:
    event = Event(driver.calls)
    assert event.reached()
    driver.set(status=600)
    assert not event.reached()
    driver.set(status=700)
    with pytest.raises(BackendError, match="cuEventQuery failed"):
        event.reached()


def test_a_kernel_gets_its_grid_and_its_values(driver: Driver) -> None:
    module = Module(driver.calls, b"ptx\0")
    assert driver.name == b"ptx"
    kernel = module.kernel("letterbox", "PPiiiff")
    assert (driver.seen(1), driver.name) == ([MODULE], b"letterbox")
    values = (0x7FFF_0000_1111_0000, 0x7FFF_2222_0000_0000, 640, -5, 1, 0.25, 114.0)
    kernel.launch(stream_of(driver), (80, 81, 82), (32, 8, 2), *values)
    assert driver.seen(10) == [FUNCTION, 80, 81, 82, 32, 8, 2, 0, STREAM, 0]
    assert driver.launched() == [struct.pack("PPiiiff", *values)]
    module.close()
    assert driver.seen(1) == [MODULE]


def actions(driver: Driver) -> dict[str, Callable[[], Any]]:
    stream, event = stream_of(driver), Event(driver.calls)
    module = Module(driver.calls, b"ptx\0")
    kernel = module.kernel("k", "P")
    graph = Graph(driver.calls, None, GRAPH, stream)
    return {
        "cuEventRecord": lambda: event.record(stream),
        "cuEventQuery": event.reached,
        "cuEventSynchronize": event.synchronize,
        "cuEventElapsedTime": lambda: event.seconds_since(event),
        "cuStreamWaitEvent": lambda: stream.wait(event),
        "cuLaunchKernel": lambda: kernel.launch(stream, (1, 1, 1), (1, 1, 1), 1),
        "cuGraphLaunch": graph.launch,
        "cuEventCreate": lambda: Event(driver.calls),
        "cuModuleLoadData": lambda: Module(driver.calls, b"ptx\0"),
        "cuModuleGetFunction: k": lambda: module.kernel("k", "P"),
    }


def test_each_status_is_looked_at(driver: Driver) -> None:
    for call, act in actions(driver).items():
        driver.set(status=700)
        said = f"backend tensorrt: GPU 3: {call} failed: an illegal memory access was encountered (700)"
        with pytest.raises(BackendError) as caught:
            act()
        assert str(caught.value) == said
    driver.set(status=2)
    with pytest.raises(BackendError, match=r"out of memory \(2\); lower engine\.slots or batch\.max"):
        Module(driver.calls, b"ptx\0")
    driver.set(status=9999)
    with pytest.raises(BackendError, match=r"unknown error \(9999\)"):
        Module(driver.calls, b"ptx\0")


def test_other_threads_run_while_the_driver_waits(driver: Driver) -> None:
    for call, act in actions(driver).items():
        driver.set(waiting=0, released=0, wait_ms=2000)
        thread = threading.Thread(target=act)
        thread.start()
        # A call that held the interpreter lock would be over, having given up, before this thread saw it wait.
        while not driver.get("waiting"):
            time.sleep(0.001)
        driver.set(released=1)
        thread.join()
        assert not driver.get("gave_up"), call
        driver.set(wait_ms=0)


def test_two_threads_that_launch_one_kernel_keep_their_values_apart(driver: Driver) -> None:
    kernel, stream = Module(driver.calls, b"ptx\0").kernel("k", "P"), stream_of(driver)
    driver.set(wait_ms=20)
    threads = [threading.Thread(target=kernel.launch, args=(stream, (1, 1, 1), (1, 1, 1), value)) for value in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(driver.launched()) == [struct.pack("P", value) for value in range(4)]
