"""The page's pictures of frames that never leave the GPU: small ones, made there."""

from __future__ import annotations

import json
import os
import struct
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from streamd.engine.tensorrt import kernels
from streamd.engine.tensorrt.backend import KERNELS, THUMBNAIL
from streamd.engine.tensorrt.cuda import Device
from streamd.engine.tensorrt.thumbnail import Thumbnailer
from streamd.errors import FrameError
from streamd.imaging.reference import letterbox_rgb
from streamd.sources.av import AvStreamSettings
from streamd.sources.av_source import AvSource
from streamd.types import Box, Frame
from tests.behaviour.daemon import daemon, until
from tests.conftest import shared
from tests.gpu.kernel_cases import noise_frame

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(300)]

CLIP = "videos/ped_amir.mp4"


@pytest.fixture(scope="module")
def device(gpu: None) -> Iterator[Device]:
    opened = Device(0)
    yield opened
    opened.close()


def frames(decode: str) -> Iterator[Frame]:
    settings = AvStreamSettings(id="s", url=str(shared(CLIP)), pace="asap", decode=decode)
    source = AvSource(settings, device=0 if decode == "nvdec" else None)
    source.open()
    return iter(source.frames())


def thumbnailer(device: Device) -> Thumbnailer:
    return Thumbnailer(device, device.kernels(kernels.ptx(), KERNELS)[THUMBNAIL])


@pytest.mark.parametrize("size", [(480, 270), (160, 90), (1280, 720)])
def test_a_small_picture_is_the_references(device: Device, size: tuple[int, int]) -> None:
    maker, hard, soft = thumbnailer(device), frames("nvdec"), frames("software")
    for _ in range(5):
        there, here = next(hard), next(soft)
        want, _ = letterbox_rgb(here, *size, color="BGR")
        assert there.picture.device == 0
        with device:
            event = device.event()  # the decoder's copies, which a collected batch has waited for
            event.record(None)
            event.synchronize()
        found = maker.make(there, *size)
        assert found.shape == (size[1], size[0], 3)
        np.testing.assert_allclose(found, want, atol=0.51)


def test_sizes_may_change_and_no_buffer_is_made_before_the_first_picture(device: Device) -> None:
    before = device.device_bytes, device.pinned_bytes
    maker = thumbnailer(device)
    assert (device.device_bytes, device.pinned_bytes) == before
    frame = next(frames("nvdec"))
    for size in [(64, 36), (640, 360), (64, 36), *((100 + i, 60) for i in range(20))]:
        assert maker.make(frame, *size).shape == (size[1], size[0], 3)
    assert device.device_bytes - before[0] == 640 * 360 * 3 + kernels.PICTURE_BYTES
    part = maker.make(replace(frame, roi=Box(960, 0, 960, 1080)), 96, 108)
    whole = maker.make(frame, 192, 108)
    assert np.abs(part.astype(int) - whole[:, 96:]).mean() < 1


def test_a_picture_that_cannot_be_read_is_a_frame_error(device: Device) -> None:
    frame = noise_frame("nv12", 64, 36)
    unknown = replace(frame, picture=replace(frame.picture, format="yuv411p", device=0))
    with pytest.raises(FrameError, match="yuv411p"):
        thumbnailer(device).make(unknown, 64, 36)


def record(answer: Any) -> tuple[dict[str, Any] | None, bytes]:
    head, body = struct.unpack("!II", answer.read(8))
    return (json.loads(answer.read(head)) if head else None), answer.read(body)


@pytest.mark.parametrize("workers", [1, 2])
def test_the_page_shows_what_the_gpu_decodes(gpu: None, tmp_path: Path, workers: int) -> None:
    plan = os.environ.get("STREAMD_TEST_PLAN")
    if plan is None:
        pytest.skip("STREAMD_TEST_PLAN names no plan")
    names = [f"s{i}" for i in range(4)]
    streams = "".join(f"  - {{id: {name}, url: {shared(CLIP)}, loop: true, decode: nvdec}}\n" for name in names)
    config = f"model: {{path: {plan}}}\nengine: {{kind: tensorrt}}\nworkers: {workers}\nstreams:\n{streams}"
    with daemon(tmp_path, config, metrics="page: true") as running:
        until(lambda: running.get("/readyz")[0] == 200, 120)
        url = f"http://127.0.0.1:{running.port}/pictures?streams={','.join(names)}&fps=5&width=480"
        pictures: dict[str, list[Any]] = {name: [] for name in names}
        with urllib.request.urlopen(url, timeout=20) as answer:
            end = time.monotonic() + 60
            while min(map(len, pictures.values())) < 3 and time.monotonic() < end:
                told, jpeg = record(answer)
                if told is not None:
                    assert jpeg, "boxes only"
                    pictures[told["stream"]].append(cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR))
        for name in names:
            assert len(pictures[name]) >= 3
            for image in pictures[name]:
                assert image.shape == (270, 480, 3)
                assert image.std() > 20
        assert running.stop() == 0
        assert not [line for line in running.log() if line["event"] == "could not make a picture for the page"]
