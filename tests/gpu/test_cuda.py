"""The CUDA seam: the shared context, what is left behind, errors, threads, graphs."""

from __future__ import annotations

import ctypes
import threading

import numpy as np
import pytest

from streamd.engine.tensorrt.cuda import Device
from streamd.errors import BackendError

pytestmark = pytest.mark.gpu


def current_context() -> int | None:
    top = ctypes.c_void_p()
    ctypes.CDLL("libcuda.so.1").cuCtxGetCurrent(ctypes.byref(top))
    return top.value


def test_the_context_has_the_flags_ffmpeg_wants(device: Device) -> None:
    flags, active = ctypes.c_uint(), ctypes.c_int()
    ctypes.CDLL("libcuda.so.1").cuDevicePrimaryCtxGetState(0, ctypes.byref(flags), ctypes.byref(active))
    assert (flags.value, active.value) == (4, 1)


def test_nothing_stays_pushed(gpu: None) -> None:
    before = current_context()
    device = Device(0)
    with device:
        assert current_context() is not None
    assert current_context() == before
    device.allocate(1 << 20)
    device.close()
    device.close()
    assert current_context() == before


@pytest.mark.alone
def test_it_opens_again_and_gives_memory_back(gpu: None) -> None:
    device = Device(0)
    free = device.memory()[0]
    device.allocate(256 << 20)
    device.allocate_pinned(1 << 20)
    assert device.memory()[0] <= free - (256 << 20)
    assert device.device_bytes == 256 << 20
    device.close()
    again = Device(0)
    # Programs other than these tests may use the GPU meanwhile: most of it is enough.
    assert again.memory()[0] > free - (128 << 20)
    again.close()


def test_it_may_be_closed_by_another_thread(gpu: None) -> None:
    device = Device(0)
    device.stream()
    device.event()
    device.allocate(1 << 20)
    thread = threading.Thread(target=device.close)
    thread.start()
    thread.join()
    assert device.device_bytes == 0


def test_a_copy_goes_there_and_back_from_any_thread(device: Device) -> None:
    stream, buffer = device.stream(), device.allocate(1 << 16)
    out, back = device.allocate_pinned(1 << 16), device.allocate_pinned(1 << 16)
    out.bytes[:] = np.arange(1 << 16, dtype=np.uint32).astype(np.uint8)
    started, done = device.event(), device.event()

    def there() -> None:
        with device:
            started.record(stream)
            device.to_device(stream, buffer.address, out.bytes)

    thread = threading.Thread(target=there)
    thread.start()
    thread.join()
    with device:
        device.to_host(stream, back.bytes, buffer.address)
        done.record(stream)
        done.synchronize()
        assert done.reached()
        assert 0 <= done.seconds_since(started) < 5
    np.testing.assert_array_equal(out.bytes, back.bytes)


def test_too_much_memory_is_one_clear_error(device: Device) -> None:
    with pytest.raises(BackendError, match=r"MiB free\); lower engine\.slots or batch\.max"):
        device.allocate(1 << 50)
    assert device.allocate(1 << 20).size == 1 << 20, "the device works on"


def test_a_gpu_that_is_not_there_is_named(gpu: None) -> None:
    with pytest.raises(BackendError, match=r"engine\.device is 99, but there are \d+ GPUs"):
        Device(99)


def test_ptx_that_cannot_be_compiled_is_one_error(device: Device) -> None:
    with pytest.raises(BackendError, match="while compiling the kernels"):
        device.kernels(b"no kernels\0", {})


FILL = b"""
.version 7.0
.target sm_60
.address_size 64
.visible .entry fill(.param .u64 target, .param .u32 value)
{
    .reg .b32 %r<3>;
    .reg .b64 %d<4>;
    ld.param.u64 %d1, [target];
    ld.param.u32 %r1, [value];
    cvta.to.global.u64 %d1, %d1;
    mov.u32 %r2, %tid.x;
    mul.wide.u32 %d2, %r2, 4;
    add.s64 %d3, %d1, %d2;
    st.global.u32 [%d3], %r1;
    ret;
}
\0"""


def test_a_stream_waits_for_a_mark_in_another(device: Device) -> None:
    """The mark comes after a tenth of a second of copies and a kernel, whose result the other stream reads."""
    fill = device.kernels(FILL, {"fill": "PI"})["fill"]
    first, second, mark = device.stream(), device.stream(), device.event()
    bulk, bulk_host = device.allocate(64 << 20), device.allocate_pinned(64 << 20)
    words, back = device.allocate(64 * 4), device.allocate_pinned(64 * 4)
    with device:
        for _ in range(64):
            device.to_device(first, bulk.address, bulk_host.bytes)
        fill.launch(first, (1, 1, 1), (64, 1, 1), words.address, 0xCAFE1234)
        mark.record(first)
        assert not mark.reached()
        second.wait(mark)
        device.to_host(second, back.bytes, words.address)
        second.synchronize()
        assert mark.reached()
    assert (back.bytes.view(np.uint32) == 0xCAFE1234).all()


def test_the_legacy_stream_can_be_marked(device: Device) -> None:
    stream, mark = device.stream(), device.event()
    with device:
        mark.record(None)
        stream.wait(mark)
        stream.synchronize()
        assert mark.reached()


def test_a_launch_that_is_refused_is_one_error_and_harms_nothing(device: Device) -> None:
    fill = device.kernels(FILL, {"fill": "PI"})["fill"]
    stream, words, back = device.stream(), device.allocate(4), device.allocate_pinned(4)
    with device:
        with pytest.raises(BackendError, match="GPU 0: cuLaunchKernel failed: invalid argument"):
            fill.launch(stream, (1, 1, 1), (4096, 1, 1), words.address, 7)
        fill.launch(stream, (1, 1, 1), (1, 1, 1), words.address, 7)
        device.to_host(stream, back.bytes, words.address)
        stream.synchronize()
    assert back.bytes.view(np.uint32)[0] == 7


def test_a_function_that_is_not_there_is_named(device: Device) -> None:
    with pytest.raises(BackendError, match="cuModuleGetFunction: drain failed"):
        device.kernels(FILL, {"drain": "P"})


def test_a_graph_replays_what_was_captured(device: Device) -> None:
    api = device.graphs()
    if api is None:
        pytest.skip("cuda-bindings is not installed")
    stream, buffer, back = device.stream(), device.allocate(1024), device.allocate_pinned(1024)
    source = device.allocate_pinned(1024)

    def work() -> None:
        device.to_device(stream, buffer.address, source.bytes)
        device.to_host(stream, back.bytes, buffer.address)

    graph = device.capture(api, stream, work)
    assert not back.bytes.any(), "capturing executes nothing"
    for value in (1, 2):
        source.bytes[:] = value
        with device:
            graph.launch()
            stream.synchronize()
        assert (back.bytes == value).all()
    device.discard(graph)


def test_a_failed_capture_leaves_the_stream_usable(device: Device) -> None:
    api = device.graphs()
    if api is None:
        pytest.skip("cuda-bindings is not installed")
    stream, buffer = device.stream(), device.allocate(1024)

    def work() -> None:
        raise BackendError("no")

    with pytest.raises(BackendError, match="no"):
        device.capture(api, stream, work)
    with device:
        device.zero(stream, buffer.address, 1024)
        stream.synchronize()
