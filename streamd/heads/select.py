"""Which head a model has: declared, or recognised from shapes; never guessed."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import replace
from typing import Any

from pydantic import TypeAdapter, ValidationError

from streamd.errors import ConfigError
from streamd.heads import (
    KINDS,
    DetectSettings,
    EndToEndSettings,
    Head,
    HeadConfig,
    Yolov5CatSettings,
    Yolov5HeadsSettings,
    Yolov5SigmoidSettings,
    Yolov8Settings,
)
from streamd.heads.coco import COCO80
from streamd.heads.postprocess import class_numbers
from streamd.types import DecodePlan, ModelSpec

_KINDS = f"{', '.join(KINDS[:-1])} or {KINDS[-1]}"
_DISTANCES = 64
"""Channels of YOLOv8's undecoded boxes: 16 for each side."""
_STRIDES = (8, 16, 32)
_adapter: TypeAdapter[Any] = TypeAdapter(HeadConfig)


def recognise(spec: ModelSpec) -> Any:
    """The head's settings: the sidecar's word, else what the output shapes allow.

    Raises:
        ConfigError: the shapes fit no head or more than one; the message lists them and says what to declare.
    """
    if spec.head is not None:
        try:
            return _adapter.validate_python(dict(spec.head))
        except ValidationError as error:
            problems = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
            raise ConfigError(f"sidecar of {spec.path}: head: {problems}") from error
    shapes = [t.shape for t in spec.outputs]
    listed = ", ".join(f"{t.name}{list(t.shape)}" for t in spec.outputs)
    if shapes and all(len(s) == 5 or _convolved_head(s, spec) for s in shapes):
        if all(len(s) == 4 and s[1] == _DISTANCES + (len(spec.labels) or len(COCO80)) for s in shapes):
            raise ConfigError(
                f"model {spec.path}: outputs {listed} are YOLOv8's before their decoding ({_DISTANCES} channels of "
                "distances, then classes), which no head here decodes; export it with decoding, or declare "
                "model.head.kind: yolov5_heads"
            )
        return Yolov5HeadsSettings()
    if len(shapes) != 1 or len(shapes[0]) != 3:
        raise ConfigError(
            f"model {spec.path}: no known head has outputs {listed}; known: (B,A,H,W,5+C) or "
            "(B,A·(5+C),H,W) per stride, (B,N,5+C), (B,4+C,N), (B,N,6). Export the model in one of these forms"
        )
    rows, columns = shapes[0][1], shapes[0][2]
    if rows < 1 or columns < 1:
        raise ConfigError(f"model {spec.path}: output {listed} has a dynamic shape; declare model.head.kind: {_KINDS}")
    cells = sum((spec.input_height // s) * (spec.input_width // s) for s in _STRIDES)
    fits: list[Any] = []
    if columns >= 6 and rows == 3 * cells:
        fits.append(Yolov5CatSettings())
    if rows >= 5 and columns == cells:
        fits.append(Yolov8Settings())
    if columns == 6 and rows <= 1000:
        fits.append(EndToEndSettings())
    if len(fits) == 1:
        return fits[0]
    if fits:
        kinds = " and ".join(f.kind for f in fits)
        raise ConfigError(f"model {spec.path}: output {listed} fits {kinds}; declare model.head.kind")
    if rows == cells and columns >= 6:
        raise ConfigError(
            f"model {spec.path}: output {listed} is an anchor-free grid of undecoded rows, as YOLOX exports it, which "
            f"no head here decodes; export it with decoding, or declare model.head.kind: {_KINDS}"
        )
    raise ConfigError(
        f"model {spec.path}: output {listed} fits no head at input {spec.input_height}×{spec.input_width} (yolov5_cat "
        f"has {3 * cells} rows, yolov8 {cells} columns, end_to_end 6 columns); declare model.head.kind: {_KINDS}"
    )


def _convolved_head(shape: tuple[int, ...], spec: ModelSpec) -> bool:
    """Whether it can be (B, 3·(5+C), H, W) of a stride that YOLOv5 has; others are to be declared, with anchors."""
    grids = [(spec.input_height / s, spec.input_width / s) for s in _STRIDES]
    return len(shape) == 4 and shape[2:] in grids and shape[1] % 3 == 0 and shape[1] >= 3 * 6


def declared(kind: str | None, spec: ModelSpec) -> Any:
    """The settings that a kind given by itself means: the sidecar's where it is of that kind, else the kind's defaults.

    Returns:
        A member of HeadConfig, or None where `kind` is.

    Raises:
        ConfigError: the sidecar's head is of that kind, but wrong.
    """
    if kind is None:
        return None
    if spec.head is not None and spec.head.get("kind") == kind:
        return recognise(spec)
    return _adapter.validate_python({"kind": kind})


def open_head(settings: Any, spec: ModelSpec, detect: DetectSettings) -> Head:
    """Makes the head that `settings` (a member of HeadConfig, or None to recognise it) describes.

    Raises:
        ConfigError: the settings contradict the model's shapes.
    """
    head = _make(settings or recognise(spec), spec, detect)
    if head.nms:
        head.plan = _with_suppression(head.plan, spec, detect)
    return head


def _with_suppression(plan: DecodePlan, spec: ModelSpec, detect: DetectSettings) -> DecodePlan:
    """The plan for a device that also filters and suppresses, with the result of `Postprocess`."""
    floors: tuple[float, ...] = ()
    if detect.classes is not None or detect.class_conf:
        try:
            labels = resolve_labels(spec, plan.classes)
            wanted: Collection[int] = range(len(labels))
            if detect.classes is not None:
                wanted = class_numbers(detect.classes, labels, "model.detect.classes")
            numbers = class_numbers(list(detect.class_conf), labels, "model.detect.class_conf")
        except ConfigError:
            return plan  # Postprocess says what is wrong.
        own = dict(zip(numbers, detect.class_conf.values(), strict=True))
        floors = tuple(own.get(i, detect.conf) if i in wanted else math.inf for i in range(len(labels)))
    return replace(
        plan, class_conf=floors, suppress=True, iou=detect.iou, max_det=detect.max_det, agnostic=detect.agnostic
    )


def _make(settings: Any, spec: ModelSpec, detect: DetectSettings) -> Head:
    conf = min([detect.conf, *detect.class_conf.values()])
    options: dict[str, Any] = {"conf": conf, "multi_label": detect.multi_label}
    if isinstance(settings, Yolov5HeadsSettings):
        from streamd.heads.yolov5 import Yolov5Heads

        return Yolov5Heads(settings, spec, **options)
    if isinstance(settings, Yolov5CatSettings):
        from streamd.heads.yolov5 import Yolov5Cat

        return Yolov5Cat(settings, spec, **options)
    if isinstance(settings, Yolov5SigmoidSettings):
        from streamd.heads.yolov5 import Yolov5Sigmoid

        return Yolov5Sigmoid(settings, spec, **options)
    if isinstance(settings, Yolov8Settings):
        from streamd.heads.yolov8 import Yolov8

        return Yolov8(settings, spec, **options)
    from streamd.heads.end_to_end import EndToEnd

    return EndToEnd(settings, spec, **options)


def resolve_labels(spec: ModelSpec, classes: int) -> tuple[str, ...]:
    """The class names: those of the specification, or COCO's for 80 classes, or numbered ones.

    Raises:
        ConfigError: names were given, but not as many as the model has classes.
    """
    if spec.labels:
        if len(spec.labels) != classes:
            raise ConfigError(
                f"model.labels: {len(spec.labels)} names for a model with {classes} classes ({spec.path}); "
                "give one name a class, in order"
            )
        return spec.labels
    return COCO80 if classes == len(COCO80) else tuple(f"class_{i}" for i in range(classes))
