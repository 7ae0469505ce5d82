"""Outputs of small random models, decoded here and by their family's own post-processing (tools/head_references.py)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from streamd.heads import DetectSettings
from streamd.heads.detector import Detector, open_detector
from streamd.heads.obb import covariances, probabilistic_iou, rotated_corners
from streamd.heads.rf_detr import COCO_COLUMNS
from streamd.heads.segment import Segment
from streamd.heads.select import recognise
from streamd.types import Box, Details, Letterbox, ModelSpec, Placement, TensorSpec

GOLDEN = Path(__file__).with_name("golden")
CONF, IOU = 0.25, 0.45
KINDS = {
    "yolov10": "end_to_end", "yolo26": "end_to_end", "pose_yolo11": "pose", "pose_yolo26": "pose", "obb_yolo11": "obb",
    "obb_yolo26": "obb", "segment_yolo11": "segment", "segment_yolo26": "segment", "rtdetr_ultralytics": "rtdetr",
    "detr_rtdetr": "detr", "detr_rtdetr_v2": "detr", "detr_dfine": "detr", "detr_deimv2": "detr", "rf_detr": "rf_detr",
}  # fmt: skip


class Golden:
    """One file, decoded."""

    def __init__(self, name: str) -> None:
        self.name = name
        with np.load(GOLDEN / f"{name}.npz") as file:
            self.reference = {key: file[key] for key in file.files}
        values = self.reference
        if name == "rf_detr":
            # The reference has COCO's category numbers, some of which are no classes.
            used = np.isin(values["class_id"], COCO_COLUMNS)
            values.update({key: values[key][used] for key in ("xyxy", "score", "class_id")})
            values["class_id"] = np.searchsorted(COCO_COLUMNS, values["class_id"])
        self.outputs = [values[f"out{i}"] for i in range(len(values["names"]))]
        metadata = json.loads(str(values["metadata"]))
        height, width = (int(v) for v in values["input"])
        tensors = tuple(
            TensorSpec(str(n), o.shape, "float32") for n, o in zip(values["names"], self.outputs, strict=True)
        )
        image = TensorSpec("images", (1, 3, height, width), "float32")
        labels = () if name == "rf_detr" else ("ant", "bee", "cat")
        self.spec = ModelSpec("m.onnx", "0" * 64, "m", image, tensors, labels, metadata=metadata)
        # These families give every class of a box that is above the threshold.
        detect = DetectSettings(conf=CONF, iou=IOU, multi_label=name.startswith(("rtdetr", "detr", "rf")))
        self.detector: Detector = open_detector(self.spec, None, detect)
        self.height, self.width = (int(v) for v in values["source"])
        placement = Placement("stretch" if values["how"] == "stretch" else "letterbox")
        self.box = Letterbox.fit(Box(0, 0, self.width, self.height), width, height, placement)
        self.xyxy, self.score, self.class_id = self.detector.postprocess(self.outputs, 0, self.box)
        self.details: Details | None = self.detector.postprocess.details

    def visible(self) -> npt.NDArray[np.bool_]:
        """Which of the reference's boxes have a size and a part in the picture: the others are not published."""
        values = self.reference
        if "xyxy" in values:
            boxes = values["xyxy"]
        else:
            corners = rotated_corners(values["rotated"])
            boxes = np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1)
            boxes[(values["rotated"][:, 2:4] <= 0).any(axis=1)] = 0
        clipped = np.clip(boxes, 0, [self.width, self.height] * 2)
        return np.asarray((boxes[:, 2:] > boxes[:, :2]).all(axis=1) & (clipped[:, 2:] > clipped[:, :2]).all(axis=1))

    def match(self, ours: Any, theirs: Any, tolerance: float) -> list[int]:
        """For each of the reference's visible boxes the number of ours with its score, class and `theirs` (N, E).

        Raises:
            AssertionError: a box has no partner, or one that another has, too.
        """
        values, visible = self.reference, self.visible()
        mine = np.column_stack([self.score * 1000, self.class_id * 1000, ours.reshape(len(self.score), -1)])
        other = np.column_stack(
            [values["score"] * 1000, values["class_id"] * 1000, theirs.reshape(len(values["score"]), -1)]
        )[visible]
        assert len(other) > 3
        apart = np.abs(mine[None] - other[:, None]).max(axis=2)
        found = apart.argmin(axis=1)
        assert apart.min(axis=1).max() < tolerance
        assert len(set(found.tolist())) == len(found)
        return [int(i) for i in found]


@pytest.fixture(scope="module", params=KINDS)
def golden(request: pytest.FixtureRequest) -> Golden:
    return Golden(request.param)


def test_every_file_has_its_kind() -> None:
    assert {path.stem for path in GOLDEN.glob("*.npz")} == KINDS.keys()


def test_it_is_recognised_and_gives_the_boxes_of_the_reference(golden: Golden) -> None:
    assert recognise(golden.spec).kind == KINDS[golden.name]
    if "xyxy" in golden.reference:
        theirs = np.clip(golden.reference["xyxy"], 0, [golden.width, golden.height] * 2)
        assert len(golden.match(golden.xyxy, theirs, 0.02)) == len(golden.xyxy)
        return
    # Boxes reach the journal of the picture upright: those around the rotated ones.
    assert golden.details is not None
    theirs = rotated_corners(golden.reference["rotated"])
    found = golden.match(golden.details.oriented, theirs, 0.05)
    more = set(range(len(golden.score))) - set(found)
    if golden.detector.head.nms:
        # Fast NMS lets dropped boxes drop others: of what only we keep, none overlaps what is kept too much.
        boxes = golden.detector.head.candidates(golden.outputs, 0)
        assert boxes.extra is not None
        assert_apart(golden)
    else:
        assert not more


def assert_apart(golden: Golden) -> None:
    """No two boxes of a class overlap by more than the threshold, in input pixels as NMS sees them."""
    head, detect = golden.detector.head, DetectSettings(conf=CONF, iou=IOU)
    found = head.candidates(golden.outputs, 0)
    assert found.extra is not None
    kept = found.take(head.suppress(found, detect))
    assert kept.extra is not None
    centers, spreads = kept.extra[:, :2].T.astype(np.float64), covariances(kept.extra)
    for i in range(len(kept.score)):
        same = np.nonzero(kept.class_id == kept.class_id[i])[0]
        overlap = probabilistic_iou(centers[:, i], spreads[:, i], centers[:, same], spreads[:, same])
        assert (overlap[same != i] <= IOU).all()


@pytest.mark.parametrize("name", ["pose_yolo11", "pose_yolo26"])
def test_keypoints_are_those_of_the_reference(name: str) -> None:
    golden = Golden(name)
    assert golden.details is not None
    golden.match(golden.details.keypoints, golden.reference["keypoints"], 0.02)


@pytest.mark.parametrize("name", ["segment_yolo11", "segment_yolo26"])
def test_masks_are_those_of_the_reference(name: str) -> None:
    golden = Golden(name)
    head = golden.detector.head
    assert isinstance(head, Segment)
    size = golden.spec.input_width
    bits = np.unpackbits(golden.reference["masks"], axis=1)[:, : size * size].reshape(-1, size, size)
    found = head.candidates(golden.outputs, 0)
    assert found.extra is not None
    compared = 0
    for theirs, (score, class_id) in enumerate(
        zip(golden.reference["score"], golden.reference["class_id"], strict=True)
    ):
        (same,) = np.nonzero((np.abs(found.score - score) < 1e-6) & (found.class_id == class_id))
        if len(same) != 1:
            continue
        mask, x, y = head.mask(found.extra[same[0]], golden.outputs[1][0], found.xyxy[same[0]].tolist())
        ours = np.zeros((size, size), np.uint8)
        ours[y : y + mask.shape[0], x : x + mask.shape[1]] = mask
        # Interpolated values next to 0 may have another sign.
        assert (ours != bits[theirs]).sum() <= 0.005 * size * size
        compared += bool(bits[theirs].any())
    assert compared > 8
