"""RF-DETR's export."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from streamd.errors import ConfigError
from streamd.heads import DetectSettings
from streamd.heads.coco import COCO80
from streamd.heads.rf_detr import COCO_COLUMNS, RfDetrSettings
from streamd.heads.select import open_head, recognise, resolve_labels
from streamd.testing.objects import Case, Encoded, logit, spec
from streamd.types import TensorSpec
from tests.heads.test_detr import encode_queries


def encode(batch: int = 1, index: int = 0) -> Encoded:
    """See `Case.encode`."""
    boxes, scores = encode_queries(batch, index)
    logits = logit(scores).astype(np.float32)
    outputs = (TensorSpec("dets", boxes.shape, "float32"), TensorSpec("labels", logits.shape, "float32"))
    return replace(spec(), outputs=outputs), [boxes, logits]


def contract_cases() -> list[Case]:
    return [Case("", encode, None)]


def test_coco_categories_become_the_80_classes() -> None:
    """Category 1 is person, 18 dog, 90 toothbrush; 12 was never used."""
    model = replace(
        spec(labels=()),
        outputs=(TensorSpec("dets", (1, 300, 4), "float32"), TensorSpec("labels", (1, 300, 91), "float32")),
    )
    boxes, logits = np.full((1, 300, 4), 0.5, np.float32), np.full((1, 300, 91), -8, np.float32)
    for query, category in enumerate((1, 18, 90, 12)):
        logits[0, query, category] = 3
    head = open_head(None, model, DetectSettings())
    labels = resolve_labels(model, head.classes)
    assert labels == COCO80
    found = head.candidates([boxes, logits], 0).class_id
    assert [labels[i] for i in found] == ["person", "dog", "toothbrush"]
    assert (len(COCO_COLUMNS), COCO_COLUMNS[11], COCO_COLUMNS[79]) == (80, 13, 90)
    assert open_head(None, replace(model, labels=("x",) * 91), DetectSettings()).classes == 91


def test_its_names_tell_it_from_detr_and_its_masks_are_refused() -> None:
    model, _ = encode()
    assert recognise(model).kind == "rf_detr"
    renamed = tuple(replace(t, name=name) for t, name in zip(model.outputs, ("boxes", "logits"), strict=True))
    assert recognise(replace(model, outputs=renamed)).kind == "detr"
    masks = (*model.outputs, TensorSpec("masks", (1, 300, 78, 78), "float32"))
    with pytest.raises(ConfigError, match="are RF-DETR's with masks, which no head here decodes"):
        recognise(replace(model, outputs=masks))


def test_nobody_says_how_it_is_fed() -> None:
    with pytest.raises(ConfigError, match=r'mean: \[0\.485, 0\.456, 0\.406\], .* resize: "stretch"'):
        open_head(RfDetrSettings(), replace(encode()[0], input_declared=False), DetectSettings())
