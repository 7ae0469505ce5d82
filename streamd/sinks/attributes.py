"""What classifiers say of objects, as it is written in messages."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Literal

import msgspec

from streamd.types import Attribute as Said
from streamd.types import Detections


class Attribute(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a second-stage classifier says of an object. It is known later than the box: see `observed_seq`."""

    classifier: str
    label: str
    score: float
    """0 to 1: the mean over the object's crops, recent ones counting more."""
    observed_seq: int
    """`seq` of the frame of the last crop, which is older than this message."""
    crops: int
    """Crops of the object that were classified."""
    others: list[tuple[str, float]] | msgspec.UnsetType = msgspec.UNSET
    """The next best labels with their scores; only with `top_k` above 1."""


class ClassifiedObject(msgspec.Struct, frozen=True):
    """A box of an earlier frame and what a classifier says of it."""

    class_id: int
    label: str
    score: float
    box: tuple[float, float, float, float]
    attribute: Attribute


class ClassifiedMessage(msgspec.Struct, frozen=True):
    """What a classifier says of boxes of one frame that belong to no track: only where tracking is off."""

    schema: Literal[1]
    boot_id: str
    stream: str
    epoch: int
    observed_seq: int
    """`seq` of the frame."""
    captured_at: float
    """Of the frame, Unix seconds."""
    published_at: float
    """Unix seconds."""
    width: int
    height: int
    objects: list[ClassifiedObject]
    generation: int | msgspec.UnsetType = msgspec.UNSET
    """Only in a fleet: as in the detections of the frame."""


def attributes_of(said: Sequence[Said]) -> Any:
    """Of one object, for its message; unset where nothing is said of it."""
    return [_attribute(each) for each in said] if said else msgspec.UNSET


def _attribute(said: Said) -> Attribute:
    others: Any = list(said.others) if said.others else msgspec.UNSET
    return Attribute(said.classifier, said.label, said.score, said.observed_seq, said.crops, others)


def classified_message(
    d: Detections, boxes: Sequence[int], attributes: Sequence[Said], boot_id: str, generation: int = 0
) -> ClassifiedMessage:
    """The message of some boxes of one frame, with what a classifier says of each.

    `generation` is 0 outside a fleet.
    """
    objects = []
    for box, said in zip(boxes, attributes, strict=True):
        x1, y1, x2, y2 = (round(v, 2) for v in d.xyxy[box].tolist())
        class_id = int(d.class_id[box])
        objects.append(
            ClassifiedObject(
                class_id, d.model.labels[class_id], round(float(d.score[box]), 4), (x1, y1, x2, y2), _attribute(said)
            )
        )
    return ClassifiedMessage(
        1, boot_id, d.stream, d.epoch, d.seq, d.wall_ns / 1e9, time.time(), d.width, d.height, objects,
        generation or msgspec.UNSET,
    )  # fmt: skip
