"""What every head promises: objects encoded in the head's own form come back as the same boxes."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from streamd.errors import ConfigError
from streamd.heads import HEADS, DetectSettings
from streamd.heads.postprocess import Postprocess
from streamd.heads.select import open_head, recognise
from streamd.testing.contract import Contract
from streamd.testing.objects import CLASSES, LABELS, SIZE, WHOLE, Case, expected
from streamd.types import Box, Candidates, Letterbox, ModelSpec, TensorSpec


class HeadContract(Contract):
    """Tests that hold for every head. The class that derives from it has `kind` and `cases`."""

    registry = HEADS

    def cases(self) -> Sequence[Case]:
        """The forms of the head's outputs, each with `OBJECTS` of `streamd.testing.objects` in it; at least one."""
        raise NotImplementedError("define cases(), which returns a Case for each form of the head's outputs")

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """Each test that takes a `case` is run with each."""
        if "case" in metafunc.fixturenames:
            cases = self.cases()
            metafunc.parametrize("case", cases, ids=[each.name or self.kind for each in cases])

    @pytest.mark.parametrize(("batch", "index"), [(1, 0), (3, 2)])
    def test_objects_come_back(self, case: Case, batch: int, index: int) -> None:
        xyxy, score, class_id = _run(case, batch=batch, index=index)
        want_xyxy, want_score, want_class = expected()
        np.testing.assert_allclose(xyxy, want_xyxy, atol=0.01)
        np.testing.assert_allclose(score, want_score, rtol=1e-4)
        assert class_id.tolist() == want_class.tolist()
        assert (xyxy.dtype, score.dtype, class_id.dtype) == (np.float32, np.float32, np.int32)

    def test_an_empty_frame_gives_empty_arrays(self, case: Case) -> None:
        too_weak = _run(case, batch=2, index=1, detect=DetectSettings(conf=0.999))
        model, outputs = case.encode(2, 1)
        post = Postprocess(open_head(None, model, DetectSettings()), DetectSettings(), LABELS)
        assert len(post(outputs, 1, WHOLE)[1])  # first, since a head may refuse a model whose first outputs are nothing
        for xyxy, score, class_id in (post(outputs, 0, WHOLE), too_weak):
            assert (xyxy.shape, score.shape, class_id.shape) == ((0, 4), (0,), (0,))

    def test_thresholds_and_filters(self, case: Case) -> None:
        assert _run(case, DetectSettings(classes=("class_3",)))[2].tolist() == [3]
        assert _run(case, DetectSettings(classes=(5, "1")))[2].tolist() == [1, 5]
        assert _run(case, DetectSettings(conf=0.8))[2].tolist() == [1, 5]
        assert _run(case, DetectSettings(conf=0.8, class_conf={"class_3": 0.5}))[2].tolist() == [1, 5, 3]
        assert 2 in _run(case, DetectSettings(conf=0.8, class_conf={"class_2": 0.05}))[2].tolist()
        assert _run(case, DetectSettings(max_det=1))[2].tolist() == [1]

    def test_recognised_from_its_shapes_or_declared_and_its_plan_says_the_same(self, case: Case) -> None:
        model, _ = case.encode(1, 0)
        assert (model.head is None) == case.recognised
        assert recognise(model).kind == self.kind
        head = open_head(None, model, DetectSettings(conf=0.3, multi_label=True))
        assert head.classes == CLASSES
        if head.plan is None:
            assert case.layout is None
        else:
            plan = head.plan
            assert (plan.layout, plan.classes, plan.conf, plan.multi_label) == (case.layout, CLASSES, 0.3, True)

    def test_what_must_be_declared_is_not_recognised(self, case: Case) -> None:
        if case.recognised:
            return
        model = case.encode(1, 0)[0]
        with contextlib.suppress(ConfigError):
            assert recognise(replace(model, head=None)) != recognise(model)

    @pytest.mark.parametrize(("height", "width"), [(640, 640), (416, 736)])
    def test_the_shapes_that_errors_tell_are_its_own(self, height: int, width: int) -> None:
        shapes = HEADS.find(self.kind).shapes(height, width, 20)
        if not shapes:
            return
        outputs = tuple(TensorSpec(f"out{i}", shape, "float32") for i, shape in enumerate(shapes))
        image = TensorSpec("images", (1, 3, height, width), "float32")
        labels = tuple(f"class_{i}" for i in range(20))
        model = ModelSpec("m.onnx", "0" * 64, "m", image, outputs, labels, head={"kind": self.kind})
        assert open_head(None, model, DetectSettings()).classes == 20

    def test_boxes_are_mapped_to_the_source_and_clipped(self, case: Case) -> None:
        model, outputs = case.encode(1, 0)
        detect = DetectSettings()
        box = Letterbox.fit(Box(100, 50, 640, 320), SIZE, SIZE)
        xyxy, _, _ = Postprocess(open_head(None, model, detect), detect, LABELS)(outputs, 0, box)
        want = (expected()[0] - [box.pad_x, box.pad_y] * 2) * 2
        want = np.clip(want, 0, [640, 320] * 2) + [100, 50] * 2
        # The first object is in the grey above the picture, so there is nothing to show of it.
        want = want[want[:, 3] > want[:, 1]]
        assert len(want) == 2
        np.testing.assert_allclose(xyxy, want, atol=0.03)

    def test_half_precision_is_converted(self, case: Case) -> None:
        model, outputs = case.encode(1, 0)
        head = open_head(None, model, DetectSettings(conf=0.05))
        halves = [o.astype(np.float16) for o in outputs]
        got, want = head.candidates(halves, 0), head.candidates([h.astype(np.float32) for h in halves], 0)
        assert len(want.score) >= 3
        for name in ("xyxy", "score", "class_id"):
            np.testing.assert_array_equal(getattr(got, name), getattr(want, name))
            assert getattr(got, name).dtype == getattr(want, name).dtype

    def test_values_do_not_depend_on_how_memory_lies(self, case: Case) -> None:
        """OpenVINO hands out views whose channels are planes."""
        model, outputs = case.encode(2, 1)
        detect = DetectSettings(conf=0.05)
        post = Postprocess(open_head(None, model, detect), detect, LABELS)
        views = [np.ascontiguousarray(o.swapaxes(1, -1)).swapaxes(1, -1) for o in outputs]
        for a, b in zip(post(outputs, 1, WHOLE), post(views, 1, WHOLE), strict=True):
            np.testing.assert_array_equal(a, b)

    def test_device_decoded_candidates_take_the_same_last_steps(self, case: Case) -> None:
        model, outputs = case.encode(1, 0)
        detect = DetectSettings()
        head = open_head(None, model, detect)
        post = Postprocess(head, detect, LABELS)
        decoded: list[Candidates] = [head.candidates(outputs, 0)]
        for a, b in zip(post(outputs, 0, WHOLE), post(decoded, 0, WHOLE), strict=True):
            np.testing.assert_array_equal(a, b)


def _run(case: Case, detect: DetectSettings | None = None, *, batch: int = 1, index: int = 0) -> Any:
    model, outputs = case.encode(batch, index)
    detect = detect or DetectSettings()
    return Postprocess(open_head(None, model, detect), detect, LABELS)(outputs, index, WHOLE)
