"""Small pictures of frames on a GPU, gathered from many threads; the driver is one that runs the kernel on the host."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from streamd.analysis.glance.picture import LAYOUTS, Glancer
from streamd.engine.tensorrt import glance as module
from streamd.engine.tensorrt import kernels as ker
from streamd.engine.tensorrt.cuda import PinnedBuffer
from streamd.engine.tensorrt.enqueue import Kernel
from streamd.engine.tensorrt.glance import MOST, SurfaceGlances, library
from streamd.errors import BackendError
from streamd.types import Frame
from tests.gpu.kernel_cases import noise_frame

CONTEXT, STREAM, EVENT, FUNCTION = (
    0x7FFF_0000_0000_C0C0,
    0x7FFF_89AB_CDEF_0120,
    0x7FFF_1234_5678_ABC0,
    0x7FFF_0000_0000_ABC2,
)


class Gpu:
    """What `SurfaceGlances` uses of a `Device`."""

    ordinal = 0
    context = CONTEXT

    def __init__(self, path: Path) -> None:
        self.driver = ctypes.CDLL(str(path))

    def allocate_pinned(self, size: int) -> PinnedBuffer:
        return PinnedBuffer(np.zeros(size, np.uint8))

    def stream(self) -> Any:
        return SimpleNamespace(handle=STREAM)

    def event(self) -> Any:
        return SimpleNamespace(handle=EVENT)

    def addresses(self, names: Sequence[str]) -> list[int]:
        return [ctypes.cast(getattr(self.driver, name), ctypes.c_void_p).value or 0 for name in names]

    def check(self, status: int, what: str) -> None:
        raise BackendError(f"{what} failed ({status})")

    def set(self, **values: int) -> None:
        for name, value in values.items():
            ctypes.c_int.in_dll(self.driver, name).value = value

    def get(self, name: str) -> int:
        return ctypes.c_int.in_dll(self.driver, name).value

    @property
    def calls(self) -> bytes:
        return (ctypes.c_char * 64).in_dll(self.driver, "calls").value


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, tuple[Any, ...]]:
    """The driver, and glance.c, with every warning an error."""
    compiler, plain = shutil.which("g++"), shutil.which("gcc")
    if compiler is None or plain is None:
        pytest.skip("no compiler")
    folder = tmp_path_factory.mktemp("glance")
    driver, compiled = folder / "libcuda.so", folder / "glance.so"
    shared = ["-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-pthread"]
    subprocess.run(
        [compiler, "-std=c++11", "-O2", *shared, f'-DKERNELS="{ker.SOURCE}"', "-Wno-unused-function",
         Path(__file__).with_name("libcuda_glance.cpp"), "-o", driver],
        check=True,
    )  # fmt: skip
    source = Path(module.__file__).with_name("glance.c")
    subprocess.run([plain, "-std=c11", "-O3", *shared, source, "-o", compiled], check=True)
    functions = library(str(compiled))
    assert functions is not None
    return driver, functions


@pytest.fixture
def gpu(built: tuple[Path, tuple[Any, ...]]) -> Iterator[Gpu]:
    made = Gpu(built[0])
    made.set(fail_at=0, status=0, hold=0, wait_us=0, under_way=0, at_once=0, pushed=0, largest=0, waiting=0)
    yield made
    made.set(hold=0)


@pytest.fixture
def reader(gpu: Gpu, built: tuple[Path, tuple[Any, ...]]) -> Iterator[SurfaceGlances]:
    device: Any = gpu
    made = SurfaceGlances(device, Kernel(device, FUNCTION, module.ARGUMENTS), built[1])
    yield made
    gpu.set(hold=0)
    made.close()


def there(frame: Frame) -> Frame:
    """The same, but it claims to be on the GPU."""
    return replace(frame, picture=replace(frame.picture, device=0))


def surface(fmt: str = "nv12", width: int = 322, height: int = 190, seed: int = 0) -> Frame:
    """A frame on the GPU."""
    return there(noise_frame(fmt, width, height, seed=seed))


def on_host(frame: Frame) -> Any:
    """What the reference makes of it."""
    glance = Glancer(None).take(replace(frame, picture=replace(frame.picture, device=None)))
    assert glance is not None
    return glance.luma


def read(reader: SurfaceGlances, frame: Frame) -> Any:
    return reader.read(frame.picture, LAYOUTS[frame.picture.format])


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


class Asking(threading.Thread):
    """Asks for one small picture."""

    def __init__(self, reader: SurfaceGlances, frame: Frame) -> None:
        super().__init__(daemon=True)
        self.reader, self.frame = reader, frame
        self.found: Any = None
        self.error = ""
        self.start()

    def run(self) -> None:
        try:
            self.found = read(self.reader, self.frame)
        except BackendError as error:
            self.error = str(error)


@pytest.mark.parametrize("fmt", ["nv12", "p010le", "p016le", "yuv444p"])
@pytest.mark.parametrize("rotation", [0, 90])
def test_a_frame_on_the_gpu_gives_what_it_would_on_the_host(
    reader: SurfaceGlances, gpu: Gpu, fmt: str, rotation: int
) -> None:
    frame = noise_frame(fmt, 322, 190, rotation=rotation, mirrored=True)
    want = Glancer(None).take(frame)
    found = Glancer(surfaces=reader).take(there(frame))
    assert found is not None
    assert want is not None
    np.testing.assert_array_equal(found.luma, want.luma)
    np.testing.assert_array_equal(found.upright(), want.upright())
    assert (found.width, found.height, found.rotation, found.mirrored) == (322, 190, rotation, True)
    # The surfaces are complete once the legacy stream has come so far: that is waited for before the kernel.
    assert gpu.calls == b"12345"
    assert reader.counts == (1, 1)


def test_every_thread_gets_its_own(reader: SurfaceGlances, gpu: Gpu) -> None:
    gpu.set(wait_us=300)
    frames = [surface(seed=i, width=322 + 2 * (i % 5)) for i in range(100)]
    wanted = [on_host(frame) for frame in frames]
    wrong: list[int] = []

    def ask(index: int) -> None:
        wrong.extend(index for _ in range(20) if not np.array_equal(read(reader, frames[index]), wanted[index]))

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(len(frames))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    assert not wrong
    assert (gpu.get("at_once"), gpu.get("pushed")) == (0, 0)
    launches, read_ = reader.counts
    assert read_ == 2000
    assert launches < 1000, "frames that wait share a launch"
    assert gpu.get("largest") <= MOST


def test_those_that_come_meanwhile_share_the_next_launch(reader: SurfaceGlances, gpu: Gpu) -> None:
    gpu.set(hold=1)
    first = Asking(reader, surface(seed=1))
    until(lambda: gpu.get("waiting") == 1)
    others = [Asking(reader, surface(seed=2 + i)) for i in range(MOST + 6)]
    time.sleep(0.3)
    assert first.is_alive()
    gpu.set(hold=0)
    for each in (first, *others):
        each.join(20)
        np.testing.assert_array_equal(each.found, on_host(each.frame))
    assert (reader.counts, gpu.get("largest")) == ((3, 1 + MOST + 6), MOST)


@pytest.mark.parametrize("call", range(1, 6))
def test_a_call_that_fails_is_named_to_all_that_waited(reader: SurfaceGlances, gpu: Gpu, call: int) -> None:
    name = ["", "cuCtxPushCurrent", "cuEventRecord", "cuStreamWaitEvent", "cuLaunchKernel", "cuStreamSynchronize"][call]
    gpu.set(hold=1)
    first = Asking(reader, surface())
    until(lambda: gpu.get("waiting") == 1)
    others = [Asking(reader, surface(seed=i)) for i in range(3)]
    time.sleep(0.1)
    gpu.set(fail_at=call, status=700, hold=0)
    for each in others:
        each.join(20)
        assert f"{name} of a glance failed (700)" in each.error
    first.join(20)
    gpu.set(fail_at=0)
    frame = surface(seed=9)
    np.testing.assert_array_equal(read(reader, frame), on_host(frame))
    assert (gpu.get("pushed"), gpu.get("at_once")) == (0, 0), "the context is left as it was"


def test_a_failure_is_why_the_frame_is_unreadable(reader: SurfaceGlances, gpu: Gpu) -> None:
    glancer = Glancer(surfaces=reader)
    gpu.set(fail_at=5, status=700)
    assert glancer.take(surface()) is None
    assert "cuStreamSynchronize" in glancer.unreadable
    gpu.set(fail_at=0)
    assert glancer.take(surface()) is not None
    assert glancer.unreadable == ""


def test_it_waits_without_the_interpreter_lock(reader: SurfaceGlances, gpu: Gpu) -> None:
    gpu.set(hold=1)
    asking = [Asking(reader, surface(seed=i)) for i in range(3)]
    until(lambda: gpu.get("waiting") == 1)
    time.sleep(0.05)  # this thread runs, or the test would hang
    gpu.set(hold=0)
    for each in asking:
        each.join(20)
        assert each.found is not None


def test_closing_waits_for_what_is_under_way_and_refuses_the_rest(reader: SurfaceGlances, gpu: Gpu) -> None:
    gpu.set(hold=1)
    asking = [Asking(reader, surface(seed=i)) for i in range(3)]
    until(lambda: gpu.get("waiting") == 1)
    time.sleep(0.1)
    closing = threading.Thread(target=reader.close)
    closing.start()
    time.sleep(0.1)
    assert closing.is_alive()
    with pytest.raises(BackendError, match="the GPU is closed"):
        read(reader, surface())
    gpu.set(hold=0)
    closing.join(20)
    for each in asking:
        each.join(20)
        np.testing.assert_array_equal(each.found, on_host(each.frame))
    reader.close()


def test_without_a_compiler_it_says_so(gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "library", lambda: None)
    device: Any = gpu
    with pytest.raises(BackendError, match="without its compiled parts"):
        SurfaceGlances(device, Kernel(device, FUNCTION, module.ARGUMENTS))
