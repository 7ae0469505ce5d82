"""The whole daemon on real GPUs, from files that NVDEC decodes to messages: one GPU or two, one process or several."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from streamd.engine import BatchSettings, ModelSettings
from streamd.engine.tensorrt import TensorRtSettings
from streamd.engine.tensorrt.backend import TensorRtBackend
from streamd.engine.tensorrt.driver import find_gpu
from streamd.errors import FrameError
from streamd.heads import DetectSettings
from streamd.heads.select import open_head
from streamd.sources.av import AvStreamSettings
from streamd.sources.av_source import AvSource
from tests.behaviour.daemon import daemon
from tests.conftest import shared
from tests.messages import checked

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(300)]

CLIP, FRAMES = "videos/ped_amir.mp4", 96
STREAMS = 4
START_S = 120
"""Python, CUDA and an engine in each worker; the four files are over in a second."""


@pytest.fixture(scope="module")
def plan(gpu: None) -> Path:
    """Building one here would take minutes for each test run."""
    named = os.environ.get("STREAMD_TEST_PLAN")
    if named is None:
        pytest.skip("STREAMD_TEST_PLAN names no plan")
    return Path(named)


def need(devices: int) -> None:
    """Skips where there are fewer: `STREAMD_REQUIRE_GPU` promises one."""
    if find_gpu(devices - 1) is None:
        pytest.skip(f"{devices} GPUs are needed")


@pytest.mark.parametrize(("devices", "workers"), [(1, 1), (1, 2), (2, 1), (2, 2)])
def test_every_frame_of_every_file_once_and_the_same_on_each_gpu(
    plan: Path, tmp_path: Path, devices: int, workers: int
) -> None:
    need(devices)
    out = tmp_path / "o.jsonl"
    streams = "".join(
        f"  - {{id: s{i}, url: {shared(CLIP)}, pace: asap, decode: nvdec, device: {i % devices}}}\n"
        for i in range(STREAMS)
    )
    config = f"""
model: {{path: {plan}}}
engine: {{kind: tensorrt, device: {list(range(devices))}}}
workers: {workers}
sinks: [{{kind: jsonl, path: {out}, ring: 8192}}]
streams:
{streams}"""
    with daemon(tmp_path, config) as running:
        assert running.process.wait(START_S) == 0
    live = {line["stream"]: line["decoder"] for line in running.log() if "decoder" in line}
    assert live == {f"s{i}": "nvdec" for i in range(STREAMS)}
    by_stream: dict[str, list[Any]] = {f"s{i}": [] for i in range(STREAMS)}
    for line in out.read_bytes().splitlines():
        message = checked([b"streamd/1/x/detections", line])
        by_stream[message.stream].append(message)
    first = by_stream["s0"]
    assert len(first) == FRAMES
    assert sum(len(m.detections) for m in first) > FRAMES
    for stream, messages in by_stream.items():
        assert [m.seq for m in messages] == list(range(FRAMES))
        summary = running.summary(stream)
        assert (summary["received"], summary["published"], summary.get("dropped")) == (FRAMES, FRAMES, None)
        # Which kernels run hangs on the size of the batch, and so do boxes that stand on the threshold.
        same = sum(len(a.detections) == len(b.detections) for a, b in zip(messages, first, strict=True))
        assert same > 0.9 * FRAMES


def test_a_frame_decoded_on_another_gpu_is_refused(plan: Path) -> None:
    need(2)
    backend = TensorRtBackend(TensorRtSettings(device=1), ModelSettings(path=str(plan)), batch=BatchSettings(max=4))
    here, there = (
        AvSource(AvStreamSettings(id="s", url=str(shared(CLIP)), pace="asap", decode="nvdec"), device=ordinal)
        for ordinal in (1, 0)
    )
    try:
        backend.start(open_head(None, backend.spec, DetectSettings()).plan)
        here.open()
        slot = backend.slots[0]
        backend.preprocess(slot, [next(iter(here.frames()))])
        backend.infer(slot)
        backend.collect(slot)
        there.open()
        with pytest.raises(FrameError, match="the picture is on GPU 0, the model on GPU 1"):
            backend.preprocess(slot, [next(iter(there.frames()))])
    finally:
        here.close()
        there.close()
        backend.close()
