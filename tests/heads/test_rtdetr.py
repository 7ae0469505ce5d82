"""RT-DETR as Ultralytics exports it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from streamd.errors import ConfigError, ModelError
from streamd.heads import DetectSettings
from streamd.heads.rtdetr import RtdetrSettings
from streamd.heads.select import open_head, recognise
from streamd.testing.objects import CLASSES, Case, Encoded, logit, spec
from tests.heads.test_detr import encode_queries

NAMED = {"task": "detect", "head": "RTDETRDecoder"}


def encode(batch: int = 1, index: int = 0) -> Encoded:
    """See `Case.encode`. A score per class."""
    rows = np.concatenate(encode_queries(batch, index), axis=2)
    return spec(rows.shape), [rows]


def encode_final(batch: int = 1, index: int = 0) -> Encoded:
    """See `Case.encode`. Score and class number, best first, as newer versions have it."""
    boxes, scores = encode_queries(batch, index)
    best = scores.max(axis=2)
    order = np.argsort(-best, axis=1, kind="stable")
    columns = (boxes, best[..., None], scores.argmax(axis=2)[..., None])
    rows = np.concatenate([np.take_along_axis(c, order[..., None], axis=1) for c in columns], axis=2)
    rows = rows.astype(np.float32)
    return spec(rows.shape, metadata=NAMED), [rows]


def contract_cases() -> list[Case]:
    return [Case("scores", encode, None), Case("score and class", encode_final, None)]


def test_rows_of_six_are_its_own_only_where_the_metadata_says_so() -> None:
    model, outputs = encode_final()
    bare = replace(model, metadata={})
    assert recognise(bare).kind == "end_to_end"
    with pytest.raises(ModelError, match=r"normalised to 0\.\.1.*if it is RT-DETR by Ultralytics, declare"):
        open_head(None, bare, DetectSettings()).candidates(outputs, 0)
    assert open_head(RtdetrSettings(), bare, DetectSettings()).classes == CLASSES
    two = replace(bare, labels=("a", "b"))
    with pytest.raises(ConfigError, match=r"box, score and class number, or box and the scores of two classes"):
        open_head(RtdetrSettings(), two, DetectSettings())
    assert open_head(RtdetrSettings(final=False), two, DetectSettings()).classes == 2


def test_a_query_has_its_best_class_or_all_of_them() -> None:
    model, (rows,) = encode_final()
    rows[0, 3] = [*rows[0, 0, :4], 0.5, 4]  # the best query again, as another class
    best = open_head(None, model, DetectSettings()).candidates([rows], 0)
    every = open_head(None, model, DetectSettings(multi_label=True)).candidates([rows], 0)
    assert best.class_id.tolist() == rows[0, :3, 5].tolist()
    assert sorted(every.class_id.tolist()) == sorted(rows[0, :4, 5].tolist())


def test_other_shapes_and_values_are_refused() -> None:
    for shape in ((1, 2100, 10), (1, 300, 4)):
        with pytest.raises(ConfigError, match="rtdetr expects"):
            open_head(RtdetrSettings(), spec(shape), DetectSettings())
    model, (rows,) = encode()
    logits = np.concatenate([rows[..., :4], logit(rows[..., 4:])], axis=2).astype(np.float32)
    with pytest.raises(ModelError, match="with scores after the sigmoid, but they are"):
        open_head(None, model, DetectSettings()).candidates([logits], 0)
