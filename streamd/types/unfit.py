"""What is wrong with boxes and their details that code of other packages made."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from streamd.types.detections import Candidates, Details


def unfit_array(name: str, array: object, *kinds: type[np.generic]) -> str:
    """Why something is no array of one of these types; empty if it is.

    Args:
        name: what to call it.
        array: it.
        kinds: NumPy's types.
    """
    if isinstance(array, np.ndarray) and any(array.dtype == kind for kind in kinds):
        return ""
    given = array.dtype if isinstance(array, np.ndarray) else type(array).__qualname__
    return f"{name} of type {given}; expected a NumPy array of {' or '.join(kind.__name__ for kind in kinds)}"


def unfit_candidates(found: object, classes: int, least: int = 0) -> str:
    """What is wrong with the boxes of a frame; empty if nothing is. Boxes and scores that are no numbers are left out
    and counted later, as those of every model are.

    Args:
        found: as it was returned.
        classes: number of classes in the model's outputs.
        least: lowest class number.
    """
    if not isinstance(found, Candidates):
        return f"a {type(found).__qualname__}; expected streamd.types.Candidates"
    xyxy, score, class_id, extra = found.xyxy, found.score, found.class_id, found.extra
    problem = (
        unfit_array("xyxy", xyxy, np.float32)
        or unfit_array("score", score, np.float32)
        or unfit_array("class_id", class_id, np.int32)
        or (unfit_array("extra", extra, np.float32) if extra is not None else "")
    )
    if problem:
        return problem
    boxes = score.size
    if score.shape != (boxes,) or xyxy.shape != (boxes, 4) or class_id.shape != (boxes,):
        return f"xyxy {xyxy.shape}, score {score.shape} and class_id {class_id.shape}; expected (M, 4), (M,) and (M,)"
    if extra is not None and (extra.ndim != 2 or len(extra) != boxes):
        return f"extra {extra.shape} of {boxes} boxes; expected ({boxes}, E)"
    if boxes:
        first, last = int(class_id.min()), int(class_id.max())
        if first < least or last >= classes:
            return f"classes {first} to {last}; expected 0 to {classes - 1}"
    return ""


def unfit_order(score: npt.NDArray[np.float32], most: int) -> str:
    """What is wrong with the scores of the boxes to publish, in their order; empty if nothing is.

    Args:
        score: (N,), without those of invalid boxes.
        most: largest number of boxes.
    """
    if len(score) > most:
        return f"{len(score)} boxes; expected at most max_det, {most}"
    (wrong,) = np.nonzero(score[1:] > score[:-1])
    if len(wrong):
        at = int(wrong[0])
        return f"a box of score {score[at + 1]:.3g} behind one of {score[at]:.3g}; expected the best first"
    return ""


def unfit_choice(order: Any, score: npt.NDArray[np.float32], most: int) -> str:
    """What is wrong with the indices of the boxes to keep; empty if nothing is.

    Args:
        order: as they were returned.
        score: (M,) of the boxes to choose from.
        most: largest number of boxes.
    """
    if not isinstance(order, np.ndarray) or order.dtype.kind not in "iu":
        given = order.dtype if isinstance(order, np.ndarray) else type(order).__qualname__
        return f"indices of type {given}; expected a NumPy array of intp"
    if order.ndim != 1:
        return f"indices {order.shape}; expected (N,)"
    boxes = len(score)
    if len(order) and not 0 <= int(order.min()) <= int(order.max()) < boxes:
        return f"indices {int(order.min())} to {int(order.max())} of {boxes} boxes"
    if len(np.unique(order)) < len(order):
        return f"{len(order)} indices of which some are the same; expected each box once"
    return unfit_order(score[order], most)


def unfit_details(details: object, boxes: int) -> str:
    """What is wrong with the details of a frame's boxes; empty if nothing is.

    Args:
        details: as they were returned.
        boxes: their number.
    """
    if not isinstance(details, Details):
        return f"a {type(details).__qualname__}; expected streamd.types.Details"
    keypoints, oriented, polygons = details.keypoints, details.oriented, details.polygons
    if keypoints is not None:
        expected = f"({boxes}, K, 3)"
        if problem := _unfit_points("keypoints", keypoints, expected, lambda s: len(s) == 3 and s[::2] == (boxes, 3)):
            return problem
        sure = keypoints[..., 2]
        if sure.size and not 0 <= float(sure.min()) <= float(sure.max()) <= 1:
            return f"keypoints with scores of {sure.min():.4g} to {sure.max():.4g}; expected 0 to 1"
    if oriented is not None:
        expected = f"({boxes}, 4, 2)"
        if problem := _unfit_points("oriented", oriented, expected, lambda s: s == (boxes, 4, 2)):
            return problem
    if polygons is not None:
        if not isinstance(polygons, (list, tuple)):
            return f"polygons of type {type(polygons).__qualname__}; expected a list of arrays"
        if len(polygons) != boxes:
            return f"{len(polygons)} polygons of {boxes} boxes; expected one for each"
        for i, polygon in enumerate(polygons):
            if problem := _unfit_points(f"polygon {i}", polygon, "(V, 2)", lambda s: len(s) == 2 and s[1] == 2):
                return problem
    return ""


def _unfit_points(name: str, points: Any, expected: str, fits: Any) -> str:
    if problem := unfit_array(name, points, np.float32):
        return problem
    if not fits(points.shape):
        return f"{name} {points.shape}; expected {expected}"
    if not np.isfinite(points).all():
        return f"{name} with NaN or infinity; expected numbers, as messages have no others"
    return ""
