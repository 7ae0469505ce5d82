"""The TensorRT backend around a real plan: what the contract suite does not ask of every backend.

STREAMD_TEST_PLAN names the plan; without it one is built from the test model, which takes minutes once.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from streamd.engine import BatchSettings, ModelSettings
from streamd.engine.tensorrt import TensorRtSettings
from streamd.engine.tensorrt.backend import TensorRtBackend
from streamd.errors import FrameError, ModelError
from streamd.heads import DetectSettings
from streamd.heads.postprocess import Postprocess
from streamd.heads.select import open_head, resolve_labels
from streamd.sources.av import AvStreamSettings
from streamd.sources.av_source import AvSource
from streamd.types import Candidates, Frame
from tests.conftest import shared
from tests.frames import frames
from tests.gpu.kernel_cases import noise_frame
from tests.gpu.machine import Gpu

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(900)]

CONF = 0.01
"""Low, so that even drawn pictures yield boxes to compare."""


@pytest.fixture(scope="module")
def model(gpu: None) -> ModelSettings:
    plan = os.environ.get("STREAMD_TEST_PLAN")
    return ModelSettings(path=plan or str(shared("models/yolov5n_heads.onnx")))


def opened(
    model: ModelSettings, *, raw: bool = False, suppress: bool = False, **options: Any
) -> tuple[TensorRtBackend, Any]:
    backend = TensorRtBackend(TensorRtSettings(**options), model, batch=BatchSettings(max=4))
    head = open_head(None, backend.spec, DetectSettings(conf=CONF))
    backend.start(None if raw or head.plan is None else replace(head.plan, suppress=suppress))
    return backend, head


@pytest.fixture(scope="module")
def plain(model: ModelSettings) -> Iterator[tuple[TensorRtBackend, Any]]:
    backend, head = opened(model, graphs="off", max_candidates=32768)
    yield backend, head
    backend.close()


def run(backend: TensorRtBackend, batch: Sequence[Frame], slot: int = 0) -> Any:
    backend.preprocess(backend.slots[slot], batch)
    backend.infer(backend.slots[slot])
    return backend.collect(backend.slots[slot])


def assert_alike(a: Candidates, b: Candidates) -> None:
    np.testing.assert_array_equal(a.class_id, b.class_id)
    np.testing.assert_allclose(a.score, b.score, atol=1e-3)
    np.testing.assert_allclose(a.xyxy, b.xyxy, atol=0.1)


def batch_of(count: int) -> list[Frame]:
    return [noise_frame("nv12", 640, 360, seed=i) for i in range(count)]


def test_boxes_decoded_on_the_device_are_the_numpy_heads(model: ModelSettings, plain: Any) -> None:
    backend, head = plain
    other, _ = opened(model, raw=True, graphs="off")
    try:
        batch = batch_of(3)
        outputs = run(other, batch)
        found = run(backend, batch)
        for i in range(3):
            assert_alike(found[i], head.candidates(outputs, i))
    finally:
        other.close()


def test_graphs_give_what_plain_execution_gives(model: ModelSettings, plain: Any) -> None:
    pytest.importorskip("cuda.bindings.driver")
    replayed, _ = opened(model, graphs="on", max_candidates=32768)
    try:
        for count in (1, 4, 2, 3, 1):
            for slot in range(len(replayed.slots)):
                batch = batch_of(count)
                for a, b in zip(run(replayed, batch, slot), run(plain[0], batch), strict=True):
                    assert_alike(a, b)
    finally:
        replayed.close()


@pytest.mark.parametrize("graphs", ["off", "on"])
def test_boxes_suppressed_on_the_device_are_the_hosts(model: ModelSettings, plain: Any, graphs: str) -> None:
    if graphs == "on":
        pytest.importorskip("cuda.bindings.driver")
    backend, head = opened(model, suppress=True, graphs=graphs, max_candidates=32768)
    post = Postprocess(head, DetectSettings(conf=CONF), resolve_labels(backend.spec, head.classes))
    try:
        clip = AvSource(AvStreamSettings(id="s", url=str(shared("videos/vtest.avi")), pace="asap", decode="software"))
        clip.open()
        pictures = clip.frames()
        for count in (4, 1, 3):
            batch = [next(pictures) for _ in range(count)]
            boxes = backend.preprocess(backend.slots[1], batch)
            backend.infer(backend.slots[1])
            found = backend.collect(backend.slots[1])
            assert all(isinstance(c, Candidates) and c.suppressed for c in found)
            want = run(plain[0], batch)
            for i, box in enumerate(boxes):
                (xyxy, score, class_id), (want_xyxy, want_score, want_class_id) = (
                    post(found, i, box),
                    post(want, i, box),
                )
                assert len(want_score) > 0
                assert_alike(Candidates(xyxy, score, class_id), Candidates(want_xyxy, want_score, want_class_id))
    finally:
        backend.close()


def test_frames_in_device_memory_give_what_host_frames_give(plain: Any) -> None:
    backend, _ = plain
    machine = Gpu(backend._device)
    batch = batch_of(2)
    there = [machine.on_device(f) for f in batch]
    want = run(backend, batch)
    for mixed in (there, [there[0], batch[1]]):
        for a, b in zip(run(backend, mixed), want, strict=True):
            assert_alike(a, b)


def test_device_frames_are_held_until_they_have_been_read(plain: Any) -> None:
    backend, _ = plain
    frame = Gpu(backend._device).on_device(batch_of(1)[0])
    slot = backend.slots[0]
    backend.preprocess(slot, [frame])
    assert list(slot.held) == [frame]
    backend.infer(slot)
    backend.collect(slot)
    assert not slot.held


def test_a_frame_of_another_gpu_is_refused(plain: Any) -> None:
    backend, _ = plain
    frame = batch_of(1)[0]
    frame.picture = replace(frame.picture, device=7)
    with pytest.raises(FrameError, match="the picture is on GPU 7, the model on GPU 0"):
        backend.preprocess(backend.slots[0], [frame])


def test_a_slot_may_be_filled_again_before_it_ran(plain: Any) -> None:
    backend, _ = plain
    want = run(backend, batch_of(2))
    backend.preprocess(backend.slots[0], [noise_frame("bgr24", 100, 100, seed=9)])
    for a, b in zip(run(backend, batch_of(2)), want, strict=True):
        assert_alike(a, b)


def test_overflow_is_counted_and_bounded(model: ModelSettings) -> None:
    backend, _ = opened(model, graphs="off", max_candidates=16)
    try:
        found = run(backend, batch_of(2))
        assert all(len(c.score) <= 16 for c in found)
        assert backend.overflows == sum(c > 16 for c in backend.slots[0].counts())
    finally:
        backend.close()


def test_memory_is_flat_once_slots_are_warm(plain: Any) -> None:
    backend, _ = plain
    for slot in range(len(backend.slots)):
        run(backend, batch_of(4), slot)
    before = backend.memory
    for i in range(100):
        run(backend, batch_of(1 + i % 4), i % len(backend.slots))
    after = backend.memory
    assert {k: after[k] for k in ("buffers", "pinned", "scratch")} == {
        k: before[k] for k in ("buffers", "pinned", "scratch")
    }


def test_device_times_are_those_of_the_batch(plain: Any) -> None:
    backend, _ = plain
    run(backend, frames("a", 2, 1280, 720))
    times = backend.device_times(backend.slots[0])
    assert set(times) == {"preprocess", "infer"}
    assert all(0 < t < 1 for t in times.values())


_OPEN = """
import sys
from streamd.engine import BatchSettings, ModelSettings
from streamd.engine.tensorrt import TensorRtSettings
from streamd.engine.tensorrt.backend import TensorRtBackend
from streamd.errors import ModelError
try:
    TensorRtBackend(TensorRtSettings(), ModelSettings(path=sys.argv[1]), batch=BatchSettings())
except ModelError as error:
    print("ModelError:", error)
"""


@pytest.mark.parametrize("damage", ["half", "start"])
def test_a_damaged_plan_is_one_model_error(gpu: None, tmp_path: Path, damage: str) -> None:
    plan = os.environ.get("STREAMD_TEST_PLAN")
    if plan is None:
        pytest.skip("STREAMD_TEST_PLAN names no plan")
    whole = Path(plan).read_bytes()
    broken = tmp_path / "broken.plan"
    broken.write_bytes(whole[: len(whole) // 2] if damage == "half" else b"\0" * 64 + whole[64:])
    # In a process of its own: a vendor that crashes on it must not take the other tests along.
    done = subprocess.run([sys.executable, "-c", _OPEN, str(broken)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "ModelError: plan" in done.stdout
    assert "broken.plan" in done.stdout


def test_a_batch_larger_than_the_plans_is_a_model_error(model: ModelSettings) -> None:
    if not os.environ.get("STREAMD_TEST_PLAN"):
        pytest.skip("STREAMD_TEST_PLAN names no plan")
    with pytest.raises(ModelError, match=r"frames a batch, but batch\.max asks for 1024"):
        TensorRtBackend(TensorRtSettings(), model, batch=BatchSettings(max=1024))
