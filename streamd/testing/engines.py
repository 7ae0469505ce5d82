"""What every engine promises."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import pytest

from streamd.engine import ENGINES, BatchSettings, EngineSettings, ModelSettings, open_backend
from streamd.errors import FrameError, ModelError
from streamd.heads import DetectSettings
from streamd.heads.postprocess import Postprocess
from streamd.heads.select import open_head, resolve_labels
from streamd.imaging.reference import preprocess
from streamd.sources.picture import picture_of
from streamd.testing.contract import Contract
from streamd.testing.made import frames
from streamd.types import Box, Frame

SIZE = (768, 576)
"""Width and height of the pictures, in pixels."""
Opened = tuple[Any, Postprocess]


class EngineContract(Contract):
    """Tests that hold for every engine. The class that derives from it has `kind`; the rest has defaults.

    The suite runs a detector on pictures and compares what it finds: in each slot, in a batch and alone, and on three
    threads. It does not compare with another engine, so the accuracy of the engine is not tested.
    """

    registry = ENGINES
    model: ClassVar[str] = "builtin:road6"
    """A detector whose outputs a built-in head recognises, as in the configuration's `model.path`; none for an engine
    that reads no model file."""
    conf: ClassVar[float] = 0.05
    """Lowest score of a box: so low that the model finds something in `pictures`."""
    pixels: ClassVar[float] = 1.0
    """How far apart the same box may be in two runs."""
    share: ClassVar[float] = 1.0
    """How many of the boxes must be the same in two runs, 0 to 1: less where arithmetic depends on batch or slot."""
    looks_at_pixels: ClassVar[bool] = True
    """False for an engine that does not read the pictures."""

    def contract(self) -> EngineSettings:
        """The settings of the engine; by default with nothing but its kind."""
        return ENGINES.validate({"kind": self.kind})

    def unavailable(self) -> str:
        """Why the engine cannot run on this machine, which skips the suite; empty if it can."""
        return ""

    def pictures(self, count: int) -> list[Frame]:
        """`count` different frames of `SIZE` in which the model finds something: coloured squares, by default."""
        return [_frame(_squares(seed)) for seed in range(count)]

    @pytest.fixture(scope="class")
    @classmethod
    def opened(cls) -> Iterator[Opened]:
        """The started backend, and what makes boxes of its outputs."""
        self = cls()
        if missing := self.unavailable():
            pytest.skip(missing)
        settings = self._checked(self.contract())
        backend = open_backend(settings, ModelSettings(path=self.model), batch=BatchSettings(max=4))
        detect = DetectSettings(conf=self.conf)
        head = open_head(None, backend.spec, detect)
        backend.start(head.plan)
        yield backend, Postprocess(head, detect, resolve_labels(backend.spec, head.classes))
        backend.close()
        backend.close()

    def test_its_specification_is_fixed_but_for_the_batch(self, opened: Opened) -> None:
        backend, _ = opened
        assert backend.spec.max_batch >= 1
        assert all(d > 0 for d in backend.spec.input.shape[1:])
        assert all(d > 0 for o in backend.spec.outputs for d in o.shape[1:])
        assert len(backend.slots) >= 1

    def test_something_is_found(self, opened: Opened) -> None:
        """Otherwise the comparisons below compare nothing."""
        counts = [len(self._through(opened, [frame])[0][1]) for frame in self.pictures(8)]
        assert sum(counts) >= 4, "the model finds too little in pictures(); lower conf, or give others"

    def test_letterboxes_are_the_references(self, opened: Opened) -> None:
        backend, _ = opened
        for width, height in ((64, 48), (1280, 720), (100, 300)):
            batch = frames("a", 1, width, height)
            want = preprocess(batch, backend.spec.input_width, backend.spec.input_height)[1]
            assert list(backend.preprocess(backend.slots[0], batch)) == want
            backend.infer(backend.slots[0])
            backend.collect(backend.slots[0])

    def test_slots_do_not_disturb_each_other(self, opened: Opened) -> None:
        backend, post = opened
        if len(backend.slots) < 2:
            pytest.skip("one slot")
        clip = self.pictures(20)
        first, second = [clip[0]], [clip[19]]
        alone = [self._through(opened, first)[0], self._through(opened, second)[0]]
        boxes = [backend.preprocess(backend.slots[i], b)[0] for i, b in enumerate((first, second))]
        for i in (1, 0):
            backend.infer(backend.slots[i])
        for i in (1, 0):
            self._assert_alike(post(backend.collect(backend.slots[i]), 0, boxes[i]), alone[i])

    def test_a_slot_used_again_forgets_the_last_frame(self, opened: Opened) -> None:
        (frame,) = self.pictures(1)
        before = self._through(opened, [frame])[0]
        self._through(opened, frames("w", 1, 320, 64))
        after = self._through(opened, [frame])[0]
        for a, b in zip(before, after, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-3)

    def test_a_frame_is_found_alike_alone_and_in_a_batch(self, opened: Opened) -> None:
        backend, _ = opened
        if backend.spec.max_batch < 2:
            pytest.skip("this model takes one frame a batch")
        clip = self.pictures(2)
        together = self._through(opened, clip)
        for frame, found in zip(clip, together, strict=True):
            self._assert_alike(found, self._through(opened, [frame])[0])

    def test_the_crop_is_what_is_looked_at(self, opened: Opened) -> None:
        frame = replace(self.pictures(1)[0], roi=Box(384, 0, 384, 288))
        xyxy = self._through(opened, [frame])[0][0]
        assert np.all(xyxy[:, 0] >= 384)
        assert np.all(xyxy[:, 3] <= 288)

    def test_a_crop_outside_the_picture_is_a_frame_error(self, opened: Opened) -> None:
        backend, _ = opened
        if not self.looks_at_pixels:
            pytest.skip("looks at no pixels")
        frame = replace(self.pictures(1)[0], roi=Box(700, 0, 384, 288))
        with pytest.raises(FrameError, match="crop"):
            backend.preprocess(backend.slots[0], [frame])

    def test_stages_of_different_slots_run_on_three_threads(self, opened: Opened) -> None:
        backend, post = opened
        clip = self.pictures(8)
        want = [self._through(opened, [f])[0] for f in clip]
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
            self._assert_alike(a, b)

    def test_a_missing_model_is_named(self, tmp_path: Path) -> None:
        if self.model == "none":
            pytest.skip("reads no model")
        if missing := self.unavailable():
            pytest.skip(missing)
        name = f"none{Path(self.model).suffix or '.onnx'}"
        with pytest.raises(ModelError, match=rf"{name}: does not exist"):
            open_backend(self.contract(), ModelSettings(path=str(tmp_path / name)))

    def _through(self, opened: Opened, batch: Sequence[Frame], slot: int = 0) -> list[Any]:
        backend, post = opened
        boxes = backend.preprocess(backend.slots[slot], batch)
        backend.infer(backend.slots[slot])
        outputs = backend.collect(backend.slots[slot])
        return [post(outputs, i, box) for i, box in enumerate(boxes)]

    def _assert_alike(self, a: Any, b: Any) -> None:
        """Both found the same boxes."""
        near = np.abs(a[0][:, None] - b[0][None]).max(axis=2) <= self.pixels
        near &= a[2][:, None] == b[2][None]
        matched = min(int(near.any(axis=1).sum()), int(near.any(axis=0).sum())) if near.size else 0
        assert matched >= self.share * max(len(a[1]), len(b[1]))


def _squares(seed: int) -> npt.NDArray[np.uint8]:
    """A picture of `SIZE`, RGB, of squares in random colours, in which a detector sees a few things with low scores."""
    colours = np.random.default_rng(seed).integers(0, 255, (SIZE[1] // 16, SIZE[0] // 16, 3), np.uint8)
    return np.ascontiguousarray(colours.repeat(16, axis=0).repeat(16, axis=1))


def _frame(rgb: npt.NDArray[np.uint8]) -> Frame:
    import av

    picture = picture_of(av.VideoFrame.from_ndarray(rgb, format="rgb24").reformat(format="yuv420p"))
    now_ns = time.monotonic_ns()
    return Frame("s", picture, *SIZE, now_ns, time.time_ns(), now_ns)
