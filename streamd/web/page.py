"""The page's URLs: its static files, the state as JSON, and one stream of records with every picture."""

from __future__ import annotations

import base64
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from streamd.telemetry.routes import Request, Response
from streamd.types import Details, Detections
from streamd.web.guard import GUARDS, known_host
from streamd.web.state import State
from streamd.web.tap import Passed, Snapshot, Tap

STATIC = Path(__file__).with_name("static")
_KINDS = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
_RECORD = struct.Struct("!II")
_HEARTBEAT_S = 1.0
_HEARTBEAT = _RECORD.pack(0, 0)
"""An empty record, which reveals a viewer that has disconnected."""


def record(snapshot: Snapshot) -> bytes:
    """One picture on the wire: two 32-bit big-endian lengths, the description as JSON, and the JPEG.

    Where the network does not look at every frame, the description has `heat`: where something moved lately, row by
    row, as the square root of how often, 0 to 255, in base64.
    """
    if isinstance(snapshot, Passed):
        return snapshot.record
    described = describe(snapshot.detections)
    if snapshot.heat is not None:
        rows, columns = snapshot.heat.shape
        described["heat"] = {
            "rows": rows,
            "columns": columns,
            "cells": base64.b64encode(snapshot.heat.tobytes()).decode(),
        }
    head, jpeg = msgspec.json.encode(described), snapshot.jpeg()
    return b"".join((_RECORD.pack(len(head), len(jpeg)), head, jpeg))


def describe(d: Detections) -> dict[str, Any]:
    """What the page shows of one frame: boxes in upright source pixels, times in milliseconds.

    A box is `[x1, y1, x2, y2, score, label]`; where objects are tracked, its track's number follows, 0 without a track,
    and, where classifiers have said something, a list of the labels that they give it.
    Where the model says more of each box, `shapes` has as many objects as there are boxes (see `_shapes`).
    """
    t = d.times
    names = ("decode", "queue", "preprocess", "infer", "postprocess")
    stages = {name: round((end - begin) / 1e6, 3) for name, begin, end in zip(names, t[:-1], t[1:], strict=True)}
    boxes = [
        [*(round(v, 1) for v in box), round(score, 3), d.model.labels[class_id]]
        for box, score, class_id in zip(d.xyxy.tolist(), d.score.tolist(), d.class_id.tolist(), strict=True)
    ]
    if d.tracks is not None:
        for described, number in zip(boxes, d.tracks.number.tolist(), strict=True):
            described.append(number)
        if d.attributes is not None:
            for described, said in zip(boxes, d.attributes, strict=True):
                described.append([a.label for a in said])
    frame = {
        "stream": d.stream, "seq": d.seq, "epoch": d.epoch, "at": d.wall_ns / 1e9, "width": d.width,
        "height": d.height, "stages": stages, "boxes": boxes,
    }  # fmt: skip
    if d.counts is not None:
        frame["counts"] = d.counts
    if d.details is not None:
        frame["shapes"] = _shapes(d.details, len(boxes))
    return frame


def _shapes(details: Details, count: int) -> list[dict[str, Any]]:
    """Of each box what is drawn of it besides: keypoints, polygon, oriented."""
    shapes: list[dict[str, Any]] = [{} for _ in range(count)]
    named = (("keypoints", details.keypoints), ("oriented", details.oriented), ("polygon", details.polygons))
    for name, values in named:
        for shape, points in zip(shapes, values if values is not None else (), strict=values is not None):
            shape[name] = np.round(points.astype(np.float64), 2).tolist()
    return shapes


class Page:
    """Serves everything below /.

    Args:
        tap: source of the pictures.
        state: source of everything else.
        guarded: True if a login is required: the page may then be reached by any host name.
    """

    def __init__(self, tap: Tap, state: State, *, guarded: bool) -> None:
        self._tap, self._state, self._guarded = tap, state, guarded
        self._files = {
            f"/{file.name}": Response(file.read_bytes(), _KINDS[file.suffix], headers=GUARDS)
            for file in STATIC.iterdir()
            if file.suffix in _KINDS
        }
        self._files["/"] = self._files.pop("/index.html")

    def answer(self, request: Request) -> Response:
        """The handler for `HttpServer.route`."""
        if not self._guarded and not known_host(request.headers.get("Host", "")):
            return Response(
                b"host name not allowed without a login: use an IP address or localhost, or set metrics.login\n",
                code=403,
            )
        if request.path == "/state":
            return Response(self._state.json(), "application/json", headers=GUARDS)
        if request.path == "/rules":
            return Response(self._state.rules.json(), "application/json", headers=GUARDS)
        if request.path == "/pictures":
            return self._pictures(request)
        return self._files.get(request.path) or Response(
            b"not found; available: /, /metrics, /healthz, /readyz\n", code=404, headers=GUARDS
        )

    def _pictures(self, request: Request) -> Response:
        try:
            fps, width = float(request.query.get("fps", "2")), int(request.query.get("width", "480"))
        except ValueError:
            return Response(b"expected fps=NUMBER and width=PIXELS\n", code=400, headers=GUARDS)
        if not fps > 0:
            return Response(b"expected fps above 0\n", code=400, headers=GUARDS)
        # A name that no stream has would take its part of all viewers' pictures.
        streams = self._state.known(request.query.get("streams", "").split(","))
        return Response(self._records(streams, fps, width), "application/octet-stream", headers=GUARDS)

    def _records(self, streams: frozenset[str], fps: float, width: int) -> Iterator[bytes]:
        with self._tap.watch(streams, fps, width) as viewer:
            while (snapshots := viewer.wait(_HEARTBEAT_S)) is not None:
                for snapshot in snapshots:
                    yield record(snapshot)
                if not snapshots:
                    yield _HEARTBEAT
