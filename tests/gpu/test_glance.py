"""Small pictures of frames that NVDEC left on the GPU, and what follows from them: as with software decoding."""

from __future__ import annotations

import itertools
import json
import os
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from streamd.analysis.glance.gate import Gate
from streamd.analysis.glance.health_settings import CameraHealthSettings
from streamd.analysis.glance.picture import Glancer
from streamd.analysis.glance.settings import LookSettings
from streamd.engine.tensorrt import glance as module
from streamd.engine.tensorrt import kernels as ker
from streamd.engine.tensorrt.cuda import Device
from streamd.engine.tensorrt.glance import SurfaceGlances
from streamd.flow.camera import CameraWatch, HealthChange
from streamd.flow.glimpse import Glimpse
from streamd.sources.av import AvStreamSettings
from streamd.sources.av_source import AvSource
from streamd.types import Frame
from tests.behaviour.daemon import daemon
from tests.clips import write_clip
from tests.conftest import shared

CLIPS = ["ped_amir.mp4", "4ku_traffic.mp4", "finite_car.mp4", "intel_one-by-one-person-detection.mp4"]
FPS, GOOD_S, COVERED_S = 5, 25, 12
START_S = 120


@pytest.fixture(scope="module")
def reader(gpu: None) -> Iterator[SurfaceGlances]:
    if module.library() is None:
        pytest.fail("streamd's compiled parts are missing: pip install -e . where there is a C compiler")
    device = Device(0)
    made = SurfaceGlances(device, device.kernels(ker.ptx(), {module.KERNEL: module.ARGUMENTS})[module.KERNEL])
    yield made
    made.close()
    device.close()


@pytest.fixture
def either(request: pytest.FixtureRequest) -> tuple[str, SurfaceGlances | None]:
    """A way to decode, and what it needs."""
    return request.param, request.getfixturevalue("reader") if request.param == "nvdec" else None


def frames(path: Path, decode: str) -> Iterator[Frame]:
    source = AvSource(
        AvStreamSettings(id="s", url=str(path), pace="asap", decode=decode), device=0 if decode == "nvdec" else None
    )
    assert source.open().decoder == decode
    return iter(source.frames())


def cells(path: Path, decode: str, count: int, reader: SurfaceGlances | None = None) -> list[Any]:
    glancer = Glancer(surfaces=reader)
    out = []
    for frame in itertools.islice(frames(path, decode), count):
        assert (frame.picture.device is None) == (decode == "software")
        glance = glancer.take(frame)
        assert glance is not None, glancer.unreadable
        out.append(glance.luma)
    return out


@pytest.mark.gpu
@pytest.mark.parametrize("name", CLIPS)
def test_the_cells_are_those_of_software_decoding(reader: SurfaceGlances, name: str) -> None:
    path = shared(f"videos/{name}")
    hard, soft = cells(path, "nvdec", 90, reader), cells(path, "software", 90)
    assert len(hard) == len(soft) == 90
    for i, (a, b) in enumerate(zip(hard, soft, strict=True)):
        np.testing.assert_array_equal(a, b, err_msg=f"frame {i}")


@pytest.mark.gpu
def test_ten_bits_are_read_as_such(reader: SurfaceGlances, tmp_path: Path) -> None:
    if "libx265" not in av.codecs_available:
        pytest.skip("this PyAV encodes no HEVC")
    path = write_clip(
        tmp_path / "ten.mp4",
        codec="libx265",
        pix_fmt="yuv420p10le",
        size=(640, 360),
        options={"x265-params": "log-level=0"},
    )
    first = next(frames(path, "nvdec"))
    assert first.picture.format == "p010le"
    np.testing.assert_array_equal(cells(path, "nvdec", 30, reader), cells(path, "software", 30))


@pytest.mark.gpu
def test_many_streams_at_once_get_their_own_cells(reader: SurfaceGlances) -> None:
    paths = [shared(f"videos/{CLIPS[i % len(CLIPS)]}") for i in range(12)]
    wanted = {path: cells(path, "software", 60) for path in set(paths)}
    launches, read = reader.counts
    wrong: list[str] = []
    done: list[Path] = []

    def run(path: Path) -> None:
        for i, (a, b) in enumerate(zip(cells(path, "nvdec", 60, reader), wanted[path], strict=True)):
            if not np.array_equal(a, b):
                wrong.append(f"{path.name} {i}")
        done.append(path)

    threads = [threading.Thread(target=run, args=(path,)) for path in paths]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(done) == len(paths)
    assert not wrong
    assert reader.counts[1] - read == 60 * len(paths)
    assert reader.counts[0] - launches < 60 * len(paths), "some share a launch"


@pytest.mark.gpu
def test_the_same_frames_are_looked_at_for_the_same_reasons(reader: SurfaceGlances) -> None:
    """Without a network, whose answers come when they come: every decision is the same."""
    path = shared("videos/intel_one-by-one-person-detection.mp4")
    whys: dict[str, list[Any]] = {}
    for decode in ("software", "nvdec"):
        gate = Gate(LookSettings(when="motion"), live=False)
        glimpse = Glimpse("s", gate, reader if decode == "nvdec" else None)
        for frame in frames(path, decode):
            glimpse.frame(frame)
            assert frame.view is not None
            whys.setdefault(decode, []).append((frame.view.wanted, frame.view.why))
    assert whys["nvdec"] == whys["software"]
    reasons = Counter(why for _, why in whys["nvdec"])
    assert reasons["motion"] > 20
    assert reasons["still"] > 20
    assert "unreadable" not in reasons


def covered(width: int, height: int, index: int, pix_fmt: str) -> Any:
    """Cloth in front of the lens."""
    rng = np.random.default_rng(index)
    planes = np.full((height * 3 // 2, width), 128, np.uint8)
    planes[:height] = np.clip(95 + rng.normal(0, 1.5, (height, width)), 0, 255)
    return av.VideoFrame.from_ndarray(planes, format="yuv420p").reformat(format=pix_fmt)


@pytest.fixture(scope="module")
def covered_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with av.open(str(shared("videos/vtest.avi"))) as container:
        scene = [f.reformat(640, 480, "yuv420p") for f in itertools.islice(container.decode(video=0), GOOD_S * 10)][::2]

    def draw(width: int, height: int, index: int, pix_fmt: str) -> Any:
        if index >= len(scene):
            return covered(width, height, index, pix_fmt)
        return av.VideoFrame.from_ndarray(scene[index].to_ndarray(), format="yuv420p")

    path = tmp_path_factory.mktemp("covered") / "covered.mp4"
    return write_clip(path, frames=(GOOD_S + COVERED_S) * FPS, size=(640, 480), fps=FPS, draw=draw)


@pytest.mark.parametrize("either", ["software", pytest.param("nvdec", marks=pytest.mark.gpu)], indirect=True)
def test_a_covered_camera_is_told(either: tuple[str, SurfaceGlances | None], covered_clip: Path) -> None:
    decode, reader = either
    changes: list[HealthChange] = []
    watch = CameraWatch("s", CameraHealthSettings(enabled=True), changes.append, reader)
    seen = 0
    for seq, frame in enumerate(frames(covered_clip, decode)):
        assert frame.pts_ns is not None
        frame.seq, frame.captured_ns = seq, frame.pts_ns + 10**9  # the clip's own pace, not that of the decoder
        watch.frame(frame)
        seen += 1
    assert seen == (GOOD_S + COVERED_S) * FPS
    assert [change.states for change in changes] == [("covered",)]
    assert GOOD_S < changes[0].seq / FPS < GOOD_S + 10
    assert changes[0].before is not None


@pytest.mark.gpu
@pytest.mark.timeout(300)
def test_a_daemon_looks_where_something_moves(gpu: None, tmp_path: Path) -> None:
    plan = os.environ.get("STREAMD_TEST_PLAN")
    if plan is None:
        pytest.skip("STREAMD_TEST_PLAN names no plan")
    clip = shared("videos/intel_one-by-one-person-detection.mp4")
    with av.open(str(clip)) as container:
        count = sum(1 for _ in container.decode(video=0))
    looked: dict[str, list[int]] = {}
    for decode in ("software", "nvdec", "auto"):
        folder = tmp_path / decode
        folder.mkdir()
        streams = "".join(
            f"  - {{id: s{i}, url: {clip}, pace: asap, decode: {decode}, camera_health: {{enabled: true}}, "
            "look: {when: motion}}\n"
            for i in range(4)
        )
        config = f"""
model: {{path: {plan}}}
engine: {{kind: tensorrt}}
sinks: [{{kind: jsonl, path: {folder}/out.jsonl, glances: true, ring: 16384}}]
streams:
{streams}"""
        with daemon(folder, config) as running:
            assert running.process.wait(START_S) == 0
        log = running.log()
        live = {line["stream"]: line["decoder"] for line in log if "decoder" in line}
        assert set(live.values()) == {"software" if decode == "software" else "nvdec"}
        assert not [line for line in log if "cannot be watched" in str(line) or "cannot be found" in str(line)]
        lines = [json.loads(line) for line in (folder / "out.jsonl").read_text().splitlines()]
        for i in range(4):
            own = [line for line in lines if line.get("stream") == f"s{i}" and "seq" in line and "width" in line]
            assert [line["seq"] for line in own] == list(range(count)), "in order, each once"
            looked.setdefault(decode, []).append(sum("detections" in line for line in own))
    # What the network finds teaches the gate, and comes sooner or later.
    soft = np.mean(looked["software"])
    for decode in ("nvdec", "auto"):
        assert abs(np.mean(looked[decode]) - soft) < 0.1 * count, looked
        assert max(looked[decode]) < count, looked
