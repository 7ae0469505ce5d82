"""Frames that never leave the GPU: NVDEC's surfaces give the tensors of software decoding."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest
from fakecam import FakeCamera
from rtp_clip import Clip

from streamd.engine.tensorrt.cuda import Device
from streamd.errors import SourceError
from streamd.sources.admission import DEVICE_PLACES, device_gate
from streamd.sources.av import AvStreamSettings
from streamd.sources.av_source import AvSource
from streamd.types import Frame
from tests.conftest import shared
from tests.gpu.kernel_cases import input_spec
from tests.gpu.machine import Gpu

pytestmark = pytest.mark.gpu

CLIPS = ["ped_amir.mp4", "4ku_traffic.mp4", "finite_car.mp4"]
"""H.264 at 1080p and 720p, and HEVC."""


@pytest.fixture(scope="module")
def machine(gpu: None) -> Iterator[Gpu]:
    device = Device(0)
    yield Gpu(device)
    device.close()


def clip(name: str, decode: str) -> Iterator[Frame]:
    source = AvSource(
        AvStreamSettings(id="s", url=str(shared(f"videos/{name}")), pace="asap", decode=decode),
        device=0 if decode == "nvdec" else None,
    )
    source.open()
    return iter(source.frames())


@pytest.mark.parametrize("name", CLIPS)
def test_hardware_frames_give_the_tensors_of_software_frames(machine: Gpu, name: str) -> None:
    try:
        hard = clip(name, "nvdec")
    except SourceError as error:
        pytest.fail(f"this GPU does not decode {name}: {error}")
    soft = clip(name, "software")
    for i in range(30):
        a, b = next(hard), next(soft)
        assert a.picture.device == 0
        assert a.picture.format in ("nv12", "p010le")
        assert (a.width, a.height, a.pts_ns) == (b.width, b.height, b.pts_ns)
        with machine.device:
            event = machine.device.event()
            event.record(None)
            machine.stream.wait(event)
        # Sampling is per plane, so NV12 and I420 of the same picture are the same to the last bit but for order.
        got, box = machine.preprocess([a], input_spec(640, 640))
        want, want_box = machine.preprocess([b], input_spec(640, 640))
        assert box == want_box
        np.testing.assert_allclose(got, want, atol=1e-5, err_msg=f"frame {i}")


def test_surfaces_do_not_run_out_while_frames_are_held(machine: Gpu) -> None:
    hard = clip(CLIPS[0], "nvdec")
    held = [next(hard) for _ in range(16)]
    pointers = {f.picture.native.planes[0].buffer_ptr for f in held}
    assert len(pointers) == len(held), "two frames that are both alive must not share memory"


@pytest.mark.alone
def test_a_gpu_without_memory_is_not_a_damaged_file(machine: Gpu) -> None:
    import pycuda.driver as cuda

    shared(f"videos/{CLIPS[0]}")
    held, size = [], 1 << 30
    with machine.device:
        while size >= 1 << 20:
            try:
                held.append(cuda.mem_alloc(size))
            except cuda.MemoryError:
                size //= 4
        try:
            with pytest.raises(SourceError) as refused:
                list(clip(CLIPS[0], "nvdec"))
        finally:
            for memory in held:
                memory.free()
    assert refused.value.reason == "decoder"
    assert not refused.value.permanent, "it must be tried again"
    assert next(clip(CLIPS[0], "nvdec")).picture.device == 0


@pytest.mark.alone
def test_a_camera_is_read_on_until_its_decoder_may_be_created(machine: Gpu) -> None:
    video = Clip(str(shared(f"videos/{CLIPS[0]}")))
    gate = device_gate(0)
    first: list[Frame] = []
    with FakeCamera(video) as camera, contextlib.ExitStack() as places:
        for _ in range(DEVICE_PLACES):
            ticket = gate.try_enter(60)
            assert ticket is not None
            places.callback(ticket.leave)
        source = AvSource(AvStreamSettings(id="s", url=camera.url, decode="nvdec"), device=0)
        assert source.open().decoder == "nvdec"
        thread = threading.Thread(target=lambda: first.append(next(iter(source.frames()))))
        thread.start()
        before = camera.pictures
        time.sleep(2)
        assert not first
        assert camera.pictures - before > 25
        assert camera.active == 1
        freed_ns = time.monotonic_ns()
        places.close()
        thread.join(5)
        assert first
        assert first[0].picture.device == 0
        # What has come since the last key frame was decoded, and the newest of it is served.
        assert abs(first[0].captured_ns - freed_ns) < 200_000_000
        source.close()
    last = gate.try_enter(0)
    assert last is not None
    last.leave()


def test_a_gpu_is_known_by_the_same_name_however_it_is_numbered(gpu: None) -> None:
    code = "from streamd.sources.admission import _identity; print(_identity(0))"
    named = subprocess.run(
        ["nvidia-smi", "--query-gpu=uuid", "--format=csv,noheader"], check=True, capture_output=True, text=True
    ).stdout.split()
    seen = [
        subprocess.run(
            [sys.executable, "-c", code], check=True, capture_output=True, text=True,
            env=os.environ | {"CUDA_VISIBLE_DEVICES": uuid},
        ).stdout.strip()
        for uuid in named
    ]  # fmt: skip
    assert seen == [uuid.removeprefix("GPU-").replace("-", "") for uuid in named]
