"""Head, class names and last steps, put together."""

from __future__ import annotations

import numpy as np
import pytest

from streamd.errors import ConfigError
from streamd.heads import DetectSettings
from streamd.heads.detector import open_detector
from streamd.heads.yolov5_cat import Yolov5CatSettings
from streamd.testing.objects import LABELS, WHOLE, expected, spec
from tests.heads import test_yolov5_sigmoid, test_yolov8


def test_a_recognised_head_with_the_models_own_names() -> None:
    model, outputs = test_yolov8.encode()
    detector = open_detector(model, None, DetectSettings())
    assert detector.labels == LABELS
    assert detector.model.labels == LABELS
    assert (detector.model.name, detector.model.sha256) == ("m", "0" * 64)
    assert detector.plan is detector.head.plan
    np.testing.assert_allclose(detector.postprocess(outputs, 0, WHOLE)[0], expected()[0], atol=0.01)


def test_a_head_by_its_kind_or_by_its_settings() -> None:
    model, _ = test_yolov5_sigmoid.encode()
    assert (
        open_detector(model, "yolov5_cat", DetectSettings()).head.plan
        != open_detector(model, "yolov5_sigmoid", DetectSettings()).head.plan
    )
    assert open_detector(model, Yolov5CatSettings(), DetectSettings()).plan is not None


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ConfigError, match="6 names for a model with 5 classes"):
        open_detector(spec((1, 9, 2100)), None, DetectSettings())
    with pytest.raises(ConfigError, match="has no class 'dog'"):
        open_detector(test_yolov8.encode()[0], None, DetectSettings(classes=("dog",)))
