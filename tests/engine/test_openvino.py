"""OpenVINO against an independent road: OpenCV's letterbox and ONNX Runtime on the same file."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from streamd.engine import BatchSettings, ModelSettings, open_backend
from streamd.engine.openvino import OpenVinoSettings
from streamd.errors import BackendError, ConfigError, ModelError
from streamd.heads import DetectSettings, HeadSettings
from streamd.heads.detector import open_detector
from streamd.heads.picodet import PicodetSettings
from streamd.heads.postprocess import Postprocess
from streamd.heads.select import open_head, recognise, resolve_labels
from streamd.heads.yolov5_sigmoid import Yolov5SigmoidSettings
from streamd.heads.yolox import YoloxSettings
from streamd.imaging.reference import preprocess
from streamd.sources.images import list_images, read_image
from streamd.types import DecodePlan
from tests.arithmetic import has_bf16
from tests.conftest import shared
from tests.engine.onnx_models import detr_final

MODELS = ["yolov5n_heads", "yolov5n_cat", "yolov5lite_e_relu_320"]
HEADS: dict[str, Any] = {"yolov5lite_e_relu_320": Yolov5SigmoidSettings()}


def model(name: str, **settings: Any) -> ModelSettings:
    return ModelSettings(path=str(shared(f"models/{name}.onnx")), **settings)


def letterboxed(path: Path, size: int) -> np.ndarray[Any, Any]:
    """YOLOv5's own preprocessing, with OpenCV alone."""
    import cv2

    image = cv2.imread(str(path))
    assert image is not None
    scale = min(size / image.shape[0], size / image.shape[1])
    height, width = round(image.shape[0] * scale), round(image.shape[1] * scale)
    small = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
    canvas = np.full((size, size, 3), 114, np.uint8)
    top, left = (size - height) // 2, (size - width) // 2
    canvas[top : top + height, left : left + width] = small
    return np.ascontiguousarray(canvas[..., ::-1].transpose(2, 0, 1)[None].astype(np.float32) / 255)


@pytest.mark.parametrize("name", MODELS)
def test_outputs_equal_onnx_runtime(name: str) -> None:
    import onnxruntime as ort

    backend = open_backend(OpenVinoSettings(), model(name))
    backend.start()
    size = backend.spec.input_width
    path = list_images(shared("images/coco_val128/images"))[3]
    session = ort.InferenceSession(str(shared(f"models/{name}.onnx")), providers=["CPUExecutionProvider"])
    want = session.run(None, {backend.spec.input.name: letterboxed(path, size)})
    slot = backend.slots[0]
    backend.preprocess(slot, [read_image(path)])
    backend.infer(slot)
    found: Any = backend.collect(slot)
    head = open_head(HEADS.get(name), backend.spec, DetectSettings(conf=0.3))
    ours, theirs = head.candidates(found, 0), head.candidates(want, 0)
    assert len(ours.score) > 0
    assert abs(len(ours.score) - len(theirs.score)) <= 0.15 * len(theirs.score) + 1
    # Every strong box of one is a box of the other: pixels differ by the chroma road alone.
    for box, score in zip(theirs.xyxy[theirs.score > 0.5], theirs.score[theirs.score > 0.5], strict=True):
        nearest = np.abs(ours.xyxy - box).max(axis=1).min()
        assert nearest < 6, (box, score)
    backend.close()


@pytest.mark.parametrize(("name", "family"), [("yolox_nano", YoloxSettings), ("picodet_s_416_coco", PicodetSettings)])
def test_other_families_equal_onnx_runtime_on_the_reference_input(name: str, family: type[HeadSettings]) -> None:
    """Another placement, channel order, mean and deviation: the whole road from the picture to the boxes."""
    import onnxruntime as ort

    backend = open_backend(OpenVinoSettings(), model(name, **family.usual_input))
    backend.start()
    spec = backend.spec
    frame = read_image(list_images(shared("images/coco_val128/images"))[3])
    image, (box,) = preprocess(
        [frame], spec.input_width, spec.input_height, color=spec.color, scale=spec.scale, placement=spec.placement,
        mean=spec.mean or (0, 0, 0), std=spec.std or (1, 1, 1),
    )  # fmt: skip
    session = ort.InferenceSession(str(shared(f"models/{name}.onnx")), providers=["CPUExecutionProvider"])
    want: Any = session.run(None, {spec.input.name: image})
    slot = backend.slots[0]
    assert list(backend.preprocess(slot, [frame])) == [box]
    backend.infer(slot)
    found: Any = backend.collect(slot)
    head = open_head(None, spec, DetectSettings(conf=0.4))
    assert isinstance(recognise(spec), family)
    ours, theirs = head.candidates(found, 0), head.candidates(want, 0)
    assert len(theirs.score) > 0
    assert abs(len(ours.score) - len(theirs.score)) <= 0.15 * len(theirs.score) + 1
    for xyxy, score in zip(theirs.xyxy[theirs.score > 0.6], theirs.score[theirs.score > 0.6], strict=True):
        assert np.abs(ours.xyxy - xyxy).max(axis=1).min() < 6, (xyxy, score)
    backend.close()


@pytest.mark.parametrize("name", ["yolox_nano", "picodet_s_416_coco"])
def test_other_families_must_say_how_they_are_fed(name: str) -> None:
    backend = open_backend(OpenVinoSettings(), model(name))
    with pytest.raises(ConfigError, match="nothing says how this one is"):
        open_head(None, backend.spec, DetectSettings())
    backend.close()


def test_the_exporters_class_names_are_found() -> None:
    backend = open_backend(OpenVinoSettings(), model("yolov5n_cat"))
    assert resolve_labels(backend.spec, 80)[:3] == ("person", "bicycle", "car")


def test_heads_cut_at_their_convolutions_give_the_same_detections(tmp_path: Path) -> None:
    import onnx

    whole = onnx.load(str(shared("models/yolov5n_heads.onnx")))
    makers = {name: node for node in whole.graph.node for name in node.output}
    cut = []
    for output in whole.graph.output:
        transpose = makers[output.name]
        reshape = makers[transpose.input[0]]
        assert (transpose.op_type, reshape.op_type) == ("Transpose", "Reshape")
        assert makers[reshape.input[0]].op_type == "Conv"
        cut.append(reshape.input[0])
    path = tmp_path / "cut.onnx"
    onnx.utils.extract_model(str(shared("models/yolov5n_heads.onnx")), str(path), ["images"], cut)
    pictures = [read_image(p) for p in list_images(shared("images/coco_val128/images"))[:6]]
    found = []
    for settings in (model("yolov5n_heads"), ModelSettings(path=str(path))):
        backend = open_backend(OpenVinoSettings(precision="f32"), settings)
        backend.start()
        detect = DetectSettings()
        post = Postprocess(open_head(None, backend.spec, detect), detect, resolve_labels(backend.spec, 80))
        slot, boxes = backend.slots[0], []
        for picture in pictures:
            (letterbox,) = backend.preprocess(slot, [picture])
            backend.infer(slot)
            boxes.append(post(backend.collect(slot), 0, letterbox))
        found.append((backend.spec.outputs[0].shape[1:], boxes))
        backend.close()
    (before, wanted), (after, got) = found
    assert (before, after) == ((3, 80, 80, 85), (255, 80, 80))
    assert sum(len(score) for _, score, _ in wanted) > 10
    for (xyxy, score, class_id), (want_xyxy, want_score, want_class_id) in zip(got, wanted, strict=True):
        np.testing.assert_array_equal(class_id, want_class_id)
        np.testing.assert_allclose(score, want_score, atol=1e-4)
        np.testing.assert_allclose(xyxy, want_xyxy, atol=0.05)


def test_a_dynamic_batch() -> None:
    backend = open_backend(OpenVinoSettings(), model("yolov5n_heads"), batch=BatchSettings(max=3))
    assert backend.spec.max_batch == 3
    backend.start(DecodePlan("anchor_grids", 80, 0.25, False))
    images = [read_image(p) for p in list_images(shared("images/coco_val128/images"))[:3]]
    slot = backend.slots[0]
    for count in (3, 1, 2):
        backend.preprocess(slot, images[:count])
        backend.infer(slot)
        outputs: Any = backend.collect(slot)
        assert [len(o) for o in outputs] == [count] * 3
    backend.close()


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "is empty"), (b"not a model", "model .*: "), (b"\x08\x07" * 100, "model .*: ")],
)
def test_a_file_that_is_no_model(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=message) as caught:
        open_backend(OpenVinoSettings(), ModelSettings(path=str(path)))
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_device_that_is_not_there() -> None:
    backend = open_backend(OpenVinoSettings(device="GPU.7"), model("yolov5lite_e_relu_320"))
    with pytest.raises(BackendError, match=r"GPU\.7"):
        backend.start()


def test_a_size_the_model_does_not_have() -> None:
    with pytest.raises(ModelError, match="input_size is 416"):
        open_backend(OpenVinoSettings(), model("yolov5lite_e_relu_320", input_size=(416, 416)))


def test_precision_is_what_was_asked_for() -> None:
    path = list_images(shared("images/coco_val128/images"))[3]
    found: dict[str, Any] = {}
    for precision in ("f32", "bf16"):
        backend = open_backend(OpenVinoSettings(precision=precision), model("yolov5n_heads"))
        backend.start()
        backend.preprocess(backend.slots[0], [read_image(path)])
        backend.infer(backend.slots[0])
        outputs: Any = backend.collect(backend.slots[0])
        found[precision] = np.array(outputs[0])
        backend.close()
    difference = np.abs(found["f32"] - found["bf16"]).mean()
    # OpenVINO computes in float32 where the processor has no bfloat16.
    assert 0 < difference < 0.2 if has_bf16() else difference == 0


@pytest.mark.parametrize(("batch", "most"), [("N", None), ("N", 2), (2, None)])
def test_a_model_with_the_size_as_an_input_gives_boxes_of_the_picture(
    tmp_path: Path, batch: int | str, most: int | None
) -> None:
    """RT-DETR's and D-FINE's own exports: the whole way from a picture that fills the input to source pixels."""
    import cv2

    path = detr_final(tmp_path / "detr.onnx", batch=batch)
    cv2.imwrite(str(tmp_path / "a.png"), np.full((128, 192, 3), 90, np.uint8))
    settings = ModelSettings(path=str(path), labels=("a", "b", "c"), resize="stretch")
    backend = open_backend(OpenVinoSettings(), settings, batch=BatchSettings(max=most))
    assert backend.spec.input.name == "images"
    detect = DetectSettings()
    detector = open_detector(backend.spec, None, detect)
    backend.start(detector.plan)
    frames = [read_image(tmp_path / "a.png")] * backend.spec.max_batch
    boxes = backend.preprocess(backend.slots[0], frames)
    backend.infer(backend.slots[0])
    outputs = backend.collect(backend.slots[0])
    for i in range(len(frames)):
        xyxy, score, class_id = detector.postprocess(outputs, i, boxes[i])
        want = np.array([[0.1 * i, 0.2, 0.1 * i + 0.5, 0.7] for i in range(3)]) * [192, 128, 192, 128]
        np.testing.assert_allclose(xyxy, want, atol=0.01)
        np.testing.assert_allclose(score, [0.9, 0.7, 0.5], rtol=1e-5)
        assert class_id.tolist() == [0, 1, 2]
    backend.close()


_SIGNALLED = """
import signal, sys
from streamd.engine import ModelSettings, open_backend
from streamd.engine.openvino import OpenVinoSettings
from streamd.engine.signalstack import signal_stack
signal.signal(signal.SIGTERM, lambda *_: print("handled", flush=True))
before = signal_stack()
models = [open_backend(OpenVinoSettings(), ModelSettings(path=sys.argv[1])) for _ in range(2)]
for model in models:
    model.start()
    assert signal_stack() == before
del model
models.pop(0).close()
models.pop(0).close()
assert signal_stack() == before
signal.raise_signal(signal.SIGTERM)
"""


def test_a_signal_after_two_models_have_gone_is_handled() -> None:
    path = str(shared("models/yolov5lite_e_relu_320.onnx"))
    # With a stack of its own for signals, as `streamd run` has it.
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", _SIGNALLED, path], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, "handled\n"), done.stderr[-2000:]
