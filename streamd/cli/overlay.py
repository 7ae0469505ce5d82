"""Draws what the analysis knows into a picture: zones, lines, their counts, and the paths of tracks. Offline only."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from streamd.analysis.rules.settings import LineSettings, Point, ZoneSettings
from streamd.cli.annotate import DARK, Image, color_of, tag, widths
from streamd.types import Detections

PATH_FRAMES = 50
"""Frames for which a path stays visible."""


class Overlay:
    """For one run; keeps the recent path of every track.

    Args:
        zones: drawn with the number of objects inside and of presences so far.
        lines: drawn with the number of crossings in each direction.
    """

    def __init__(self, zones: Sequence[ZoneSettings] = (), lines: Sequence[LineSettings] = ()) -> None:
        self._zones, self._lines = zones, lines
        self._paths: dict[int, deque[tuple[int, int, int]]] = {}
        """By track: (seq of the frame, x, y) of the middle of the box's lower side, oldest first."""

    def draw(self, image: Image, detections: Detections) -> None:
        """Draws shapes into `image` (H, W, 3), in place. To be called with every frame, in order, before the boxes."""
        import cv2

        _, line = widths(image)
        for zone in self._zones:
            self._outline(image, zone.points, color_of(zone.name), closed=True)
        for rule in self._lines:
            self._outline(image, rule.points, color_of(rule.name), closed=False)
        for path, color in self._follow(detections):
            if len(path) > 1:
                points = np.array([point[1:] for point in path], np.int32)
                cv2.polylines(image, [points], False, color, line, cv2.LINE_AA)

    def write(self, image: Image, detections: Detections) -> None:
        """Writes the counts of zones and lines, after the boxes: no label of an object may cover them."""
        scale, _ = widths(image)
        counts = detections.counts or {}
        for zone in self._zones:
            text = _zone_text(zone.name, counts.get("zones", {}).get(zone.name))
            tag(image, text, self._top(image, zone.points), color_of(zone.name), scale)
        for rule in self._lines:
            text = _line_text(rule.name, counts.get("lines", {}).get(rule.name))
            tag(image, text, self._top(image, rule.points), color_of(rule.name), scale)

    def _follow(self, detections: Detections) -> list[tuple[deque[tuple[int, int, int]], tuple[int, int, int]]]:
        """Adds the frame's boxes to their paths; returns the paths of the tracks in it, each with its colour."""
        oldest = detections.seq - PATH_FRAMES
        self._paths = {number: path for number, path in self._paths.items() if path[-1][0] > oldest}
        if detections.tracks is None:
            return []
        seen = []
        for number, class_id, (x1, _, x2, y2) in zip(
            detections.tracks.number.tolist(), detections.class_id.tolist(), detections.xyxy.tolist(), strict=True
        ):
            if number:
                path = self._paths.setdefault(number, deque(maxlen=PATH_FRAMES))
                path.append((detections.seq, round((x1 + x2) / 2), round(y2)))
                seen.append((path, color_of(detections.model.labels[class_id])))
        return seen

    @staticmethod
    def _outline(image: Image, points: Sequence[Point], color: tuple[int, int, int], *, closed: bool) -> None:
        import cv2

        _, line = widths(image)
        height, width = image.shape[:2]
        corners = np.rint(np.array(points) * (width - 1, height - 1)).astype(np.int32)
        for each, thickness in ((DARK, line + 2), (color, line)):
            cv2.polylines(image, [corners], closed, each, thickness, cv2.LINE_AA)

    @staticmethod
    def _top(image: Image, points: Sequence[Point]) -> tuple[int, int]:
        """The highest of the points, in pixels."""
        x, y = min(points, key=lambda point: point[1])
        return round(x * (image.shape[1] - 1)), round(y * (image.shape[0] - 1))


def _zone_text(name: str, report: Mapping[str, Any] | None) -> str:
    if report is None:
        return name
    inside = "?" if report["occupancy"] is None else report["occupancy"]
    return f"{name}: {inside} inside, {sum(report['begun'].values())} in total"


def _line_text(name: str, report: Mapping[str, Any] | None) -> str:
    if report is None:
        return name
    ways = []
    for way, labels in report["crossings"].items():
        uncertain = sum(report["uncertain"][way].values())
        ways.append(f"{way} {sum(labels.values())}" + (f"+{uncertain}?" if uncertain else ""))
    return f"{name}: {', '.join(ways)}"
