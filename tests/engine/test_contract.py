"""What every backend promises, tested for each kind of `tests/contracts.py` that this machine can run.

`contract()` among a kind's cases returns its settings. Without one, they are the kind's defaults.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from streamd.engine import ENGINES, BatchSettings, ModelSettings, open_backend
from streamd.engine.auto import tensorrt_unavailable
from streamd.errors import FrameError, ModelError
from streamd.heads import DetectSettings
from streamd.heads.postprocess import Postprocess
from streamd.heads.select import open_head, resolve_labels
from streamd.imaging.reference import preprocess
from streamd.sources.av import AvStreamSettings
from streamd.sources.av_source import AvSource
from streamd.types import Box, Frame
from tests import contracts
from tests.conftest import shared
from tests.frames import frames


def kinds() -> list[Any]:
    marks = {"tensorrt": [pytest.mark.gpu]}
    return [
        pytest.param(
            contracts.cases("engine", name).contract()
            if name in contracts.external
            else ENGINES.find(name).model_validate({}),
            id=name,
            marks=marks.get(name, []),
        )
        for name in contracts.kinds(ENGINES)
        if name != "auto"  # one of the others
    ]


@pytest.fixture(params=kinds(), scope="module")
def opened(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """(backend, a batch of frames) of a started backend on a small real model."""
    settings = request.param
    if settings.kind == "tensorrt":
        missing = tensorrt_unavailable()
        if missing is not None:
            if os.environ.get("STREAMD_REQUIRE_GPU") == "1":
                pytest.fail(missing)
            pytest.skip(missing)
        plan = os.environ.get("STREAMD_TEST_PLAN")
        model = Path(plan) if plan else shared("models/yolov5n_heads.onnx")
    else:
        model = shared("models/yolov5n_heads.onnx")
    backend = open_backend(settings, ModelSettings(path=str(model)), batch=BatchSettings(max=4))
    detect = DetectSettings()
    if settings.kind == "null":
        head = open_head(None, backend.spec, detect)
        labels = backend.spec.labels
    else:
        head = open_head(None, backend.spec, detect)
        labels = resolve_labels(backend.spec, head.classes)
    backend.start(head.plan)
    yield backend, Postprocess(head, detect, labels)
    backend.close()
    backend.close()


def through(opened: Any, batch: list[Frame], slot: int = 0) -> list[Any]:
    backend, post = opened
    boxes = backend.preprocess(backend.slots[slot], batch)
    backend.infer(backend.slots[slot])
    outputs = backend.collect(backend.slots[slot])
    return [post(outputs, i, box) for i, box in enumerate(boxes)]


def test_its_specification_is_fixed_but_for_the_batch(opened: Any) -> None:
    backend, _ = opened
    assert backend.spec.max_batch >= 1
    assert all(d > 0 for d in backend.spec.input.shape[1:])
    assert all(d > 0 for o in backend.spec.outputs for d in o.shape[1:])
    assert len(backend.slots) >= 1


def test_letterboxes_are_the_references(opened: Any) -> None:
    backend, _ = opened
    for width, height in ((64, 48), (1280, 720), (100, 300)):
        batch = frames("a", 1, width, height)
        want = preprocess(batch, backend.spec.input_width, backend.spec.input_height)[1]
        assert list(backend.preprocess(backend.slots[0], batch)) == want
        backend.infer(backend.slots[0])
        backend.collect(backend.slots[0])


def test_slots_do_not_disturb_each_other(opened: Any) -> None:
    backend, post = opened
    if len(backend.slots) < 2:
        pytest.skip("one slot")
    clip = real_frames(20)
    first, second = [clip[0]], [clip[19]]
    alone = [through(opened, first)[0], through(opened, second)[0]]
    boxes = [backend.preprocess(backend.slots[i], b)[0] for i, b in enumerate((first, second))]
    for i in (1, 0):
        backend.infer(backend.slots[i])
    for i in (1, 0):
        assert_alike(backend, post(backend.collect(backend.slots[i]), 0, boxes[i]), alone[i])


def assert_alike(backend: Any, a: Any, b: Any) -> None:
    """Both found the same boxes. Slots of a TensorRT plan may run other kernels, whose INT8 rounding differs."""
    pixels, share = (5.0, 0.9) if type(backend).__name__ == "TensorRtBackend" else (1.0, 1.0)
    near = np.abs(a[0][:, None] - b[0][None]).max(axis=2) <= pixels
    near &= a[2][:, None] == b[2][None]
    matched = min(int(near.any(axis=1).sum()), int(near.any(axis=0).sum())) if near.size else 0
    assert matched >= share * max(len(a[1]), len(b[1]))


def real_frames(count: int) -> list[Frame]:
    source = AvSource(AvStreamSettings(id="s", url=str(shared("videos/vtest.avi")), pace="asap"))
    source.open()
    frames_ = source.frames()
    out = [next(frames_) for _ in range(count)]
    source.close()
    return out


def test_a_slot_used_again_forgets_the_last_frame(opened: Any) -> None:
    clip = real_frames(3)
    wide = frames("w", 1, 320, 64)
    before = through(opened, [clip[0]])[0]
    through(opened, wide)
    after = through(opened, [clip[0]])[0]
    for a, b in zip(before, after, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-3)


def test_a_frame_is_found_alike_alone_and_in_a_batch(opened: Any) -> None:
    backend, _ = opened
    if backend.spec.max_batch < 2:
        pytest.skip("this model takes one frame a batch")
    clip = real_frames(2)
    together = through(opened, clip)
    for frame, found in zip(clip, together, strict=True):
        assert_alike(backend, found, through(opened, [frame])[0])


def test_the_crop_is_what_is_looked_at(opened: Any) -> None:
    frame = replace(real_frames(1)[0], roi=Box(384, 0, 384, 288))
    xyxy = through(opened, [frame])[0][0]
    assert np.all(xyxy[:, 0] >= 384)
    assert np.all(xyxy[:, 3] <= 288)


def test_a_crop_outside_the_picture_is_a_frame_error(opened: Any) -> None:
    backend, _ = opened
    if type(backend).__name__ == "NullBackend":
        pytest.skip("looks at no pixels")
    frame = replace(real_frames(1)[0], roi=Box(700, 0, 384, 288))
    with pytest.raises(FrameError, match="crop"):
        backend.preprocess(backend.slots[0], [frame])


def test_stages_of_different_slots_run_on_three_threads(opened: Any) -> None:
    backend, post = opened
    clip = real_frames(8)
    want = [through(opened, [f])[0] for f in clip]
    count = len(backend.slots)
    free, ready = threading.Semaphore(count), threading.Semaphore(0)
    boxes: dict[int, Any] = {}
    found: list[Any] = []

    def feed() -> None:
        for i, frame in enumerate(clip):
            free.acquire()
            slot = backend.slots[i % count]
            boxes[i] = backend.preprocess(slot, [frame])
            backend.infer(slot)
            ready.release()

    thread = threading.Thread(target=feed)
    thread.start()
    for i in range(len(clip)):
        ready.acquire()
        found.append(post(backend.collect(backend.slots[i % count]), 0, boxes[i][0]))
        free.release()
    thread.join()
    for a, b in zip(found, want, strict=True):
        assert_alike(backend, a, b)


@pytest.mark.parametrize("settings", kinds())
def test_a_missing_model_is_named(settings: Any, tmp_path: Path) -> None:
    if settings.kind == "null":
        pytest.skip("reads no model")
    if settings.kind == "tensorrt" and tensorrt_unavailable() is not None:
        pytest.skip("no GPU")
    with pytest.raises(ModelError, match=r"none\.onnx: does not exist"):
        open_backend(settings, ModelSettings(path=str(tmp_path / "none.onnx")))
