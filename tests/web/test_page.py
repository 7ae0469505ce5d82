"""The page's addresses: who may ask, what they get, and that no address of a camera is in it."""

from __future__ import annotations

import base64
import json
import re
import struct
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from streamd.config.loader import load
from streamd.errors import SOURCE_REASONS, ConfigError
from streamd.flow.status import StatusBoard
from streamd.telemetry.http import HttpServer
from streamd.telemetry.metrics import Metrics
from streamd.types import Attribute, Details, Look, StreamStatus, Tracks
from streamd.web.page import STATIC, Page, describe
from streamd.web.state import State, without_addresses
from streamd.web.tap import Tap
from tests.behaviour.daemon import daemon, until
from tests.frames import detections, frames, status


class Served:
    """A page on a port, without a daemon behind it."""

    def __init__(self, *, guarded: bool = False) -> None:
        self.registry, self.board, self.tap = CollectorRegistry(), StatusBoard(), Tap()
        self.metrics = Metrics(self.registry)
        self.http = HttpServer("127.0.0.1:0", self.registry, lambda: (True, {}), lambda: (True, {}))
        page = Page(self.tap, State(self.registry, self.board.all, "boot"), guarded=guarded)
        self.http.route("/", page.answer)
        self.http.start()

    def open(self, path: str, **headers: str) -> Any:
        request = urllib.request.Request(f"http://127.0.0.1:{self.http.port}{path}", headers=headers)
        return urllib.request.urlopen(request, timeout=10)

    def code(self, path: str, **headers: str) -> int:
        try:
            with self.open(path, **headers) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            return error.code


@pytest.fixture
def served() -> Iterator[Served]:
    made = Served()
    yield made
    made.tap.close()
    made.http.close()


def read_record(answer: Any) -> tuple[dict[str, Any] | None, bytes]:
    head, body = struct.unpack("!II", answer.read(8))
    return (json.loads(answer.read(head)) if head else None), answer.read(body)


def test_every_file_is_served_under_a_strict_policy(served: Served) -> None:
    for file in STATIC.iterdir():
        with served.open("/" if file.name == "index.html" else f"/{file.name}") as answer:
            assert answer.read() == file.read_bytes()
            policy = answer.headers["Content-Security-Policy"]
            assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'")
            assert "unsafe" not in policy
            assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert [served.code(p) for p in ("/metrics", "/healthz", "/rules")] == [200, 200, 200]
    assert [served.code(p) for p in ("/nothing", "/../config.py", "/%2e%2e/page.py")] == [404, 404, 404]


def test_every_reason_has_words_for_people() -> None:
    words = (STATIC / "dom.js").read_text()
    assert [reason for reason in SOURCE_REASONS if f"  {reason}: " not in words] == []


def test_the_pages_begin_alike() -> None:
    """Each file is whole, so that it can be read alone; what is the same in all of them must stay so."""
    heads = set()
    pages = sorted(STATIC.glob("*.html"))
    for page in pages:
        own = f'<link rel="stylesheet" href="{page.stem}.css">' if page.stem != "index" else ""
        script = "main" if page.stem == "index" else page.stem
        text = page.read_text()
        title = re.findall("<title>(.*)</title>", text)
        head = text.partition("</head>")[0].replace(f"<title>{title[0]}</title>", "").replace(own, "")
        heads.add("".join(head.replace(f'src="{script}.js"', "").split()))
        assert title == (["streamd"] if page.stem == "index" else [f"{title[0].split(' · ')[0]} · streamd"])
        (skip,) = re.findall('<a class="skip" href="#(.+?)">', text)
        assert f'id="{skip}"' in text
        assert text.count('<p class="banner" id="banner" role="alert" hidden></p>') == 1
        others = {each.name for each in pages} - {page.name, "index.html", "docs.html"}
        links = re.findall('<a class="quiet" href="(.+?)">', text)
        assert set(links) == others | ({"./"} if page.stem != "index" else set()), "each leads to the others"
    assert len(heads) == 1


def test_the_files_ask_nobody_else_and_hold_nothing_inline() -> None:
    for file in STATIC.iterdir():
        text = file.read_text()
        addresses = set(re.findall(r"https?://[^\"'\s)]+", text)) - {"http://www.w3.org/2000/svg"}
        assert not addresses, file.name
        assert "innerHTML" not in text
        if file.suffix == ".html":
            assert not re.search(r"<script(?![^>]*\bsrc=)|\sstyle=|\son\w+=", text)
    for module in re.findall(r'(?:src|href)="([\w.]+)"', (STATIC / "index.html").read_text()):
        assert (STATIC / module).exists()


@pytest.mark.parametrize(
    ("host", "code"),
    [("127.0.0.1:9188", 200), ("localhost", 200), ("[::1]:9188", 200), ("a.localhost:1", 200), ("10.0.0.7", 200),
     ("evil.example", 403), ("evil.example:9188", 403), ("127.0.0.1.evil.example", 403), ("", 403)],
)  # fmt: skip
def test_without_a_login_the_page_is_asked_for_by_address(served: Served, host: str, code: int) -> None:
    assert served.code("/", Host=host) == code
    assert served.code("/metrics", Host=host) == 200


def test_with_a_login_any_name_will_do() -> None:
    served = Served(guarded=True)
    assert served.code("/", Host="cameras.example") == 200
    served.http.close()


def test_pictures_come_as_records_and_the_stream_lives_while_nothing_comes(served: Served) -> None:
    for name in ("gate", "yard"):
        served.board.post(status(name))
    absent = ",".join(f"absent{n}" for n in range(500))
    with served.open(f"/pictures?streams=gate,{absent},yard&fps=5&width=320") as answer:
        until(lambda: set(served.tap.wanted) == {"gate", "yard"})
        assert served.tap.wanted["gate"].fps == 5
        assert served.tap.wanted["gate"].width == 320
        assert read_record(answer) == (None, b"")  # nothing yet: a heartbeat
        served.tap.take(frames("gate", 1)[0], detections("gate", 7, boxes=2))
        while (got := read_record(answer))[0] is None:
            pass
        head, jpeg = got
        assert head is not None
        assert (head["stream"], head["seq"], head["width"], head["height"]) == ("gate", 7, 640, 480)
        assert head["boxes"][0] == [1.5, 2.0, 30.0, 40.0, 0.9, "person"]
        assert head["stages"] == dict.fromkeys(("decode", "queue", "preprocess", "infer", "postprocess"), 1.0)
        assert jpeg.startswith(b"\xff\xd8")
    until(lambda: not served.tap.wanted, 10, "the viewer is noticed to have gone")


def test_tracks_and_counts_travel_with_a_picture() -> None:
    plain = detections("gate", 7, boxes=2)
    assert [len(box) for box in describe(plain)["boxes"]] == [6, 6]
    assert "counts" not in describe(plain)
    tracks = Tracks(np.array([5, 0]), np.array([1.0, 0.0]), np.zeros((2, 2)))
    boxes = detections(boxes=2, tracks=tracks).boxes
    counts = {"lines": {}, "zones": {"yard": {"occupancy": 1}}}
    told = describe(replace(plain, boxes=boxes, counts=counts))
    assert [box[6] for box in told["boxes"]] == [5, 0]
    assert told["counts"] == counts
    said = [(Attribute("colour", "red", 0.9, 1, 1), Attribute("type", "van", 0.8, 1, 1)), ()]
    shown = describe(replace(plain, boxes=boxes, attributes=said))["boxes"]
    assert [box[6:] for box in shown] == [[5, ["red", "van"]], [0, []]]


def test_what_is_drawn_besides_boxes_goes_with_each_box() -> None:
    details = Details(
        keypoints=np.array([[[1.234, 5.678, 0.456]]] * 2, np.float32),
        polygons=[np.array([[1, 2], [3, 4], [5, 6]], np.float32), np.empty((0, 2), np.float32)],
    )
    shapes = describe(replace(detections("gate", boxes=2), details=details))["shapes"]
    assert shapes[0] == {"keypoints": [[1.23, 5.68, 0.46]], "polygon": [[1, 2], [3, 4], [5, 6]]}
    assert shapes[1]["polygon"] == []
    oriented = Details(oriented=np.ones((2, 4, 2), np.float32))
    assert describe(replace(detections("gate", boxes=2), details=oriented))["shapes"][1] == {"oriented": [[1, 1]] * 4}
    assert "shapes" not in describe(detections("gate"))


@pytest.mark.parametrize("query", ["fps=x", "fps=0", "fps=-1", "fps=nan", "width=1e3", "width="])
def test_a_bad_question_is_told(served: Served, query: str) -> None:
    assert served.code(f"/pictures?streams=a&{query}") == 400


def test_a_picture_says_where_something_moved(served: Served) -> None:
    heat = np.zeros((90, 160), np.float32)
    heat[20, 100] = 0.25
    (frame,) = frames("a", 1)
    served.board.post(status("a"))
    with served.open("/pictures?streams=a") as answer:
        assert read_record(answer) == (None, b"")
        found = {}
        for view in (None, Look(True, "motion", heat=heat)):
            frame.view = view
            until(lambda: bool(served.tap.wanted))
            served.tap._due.clear()
            served.tap.take(frame, detections("a"))
            while (got := read_record(answer))[0] is None:
                pass
            found[view is None] = got[0]
    assert found[True] is not None
    assert "heat" not in found[True], "the network looks at every frame"
    assert found[False] is not None
    told = found[False]["heat"]
    cells = np.frombuffer(base64.b64decode(told["cells"]), np.uint8).reshape(told["rows"], told["columns"])
    assert cells.shape == (45, 80)
    assert cells[10, 50] == 128
    assert np.count_nonzero(cells) == 1


def test_the_state_tells_what_the_network_looks_at(served: Served) -> None:
    for name in "ab":
        served.board.post(StreamStatus(name, "LIVE", "", "", 0, time.time_ns()))
    counters = served.metrics.stream("a")
    for why in ("motion", "motion", "hold"):
        counters.look(why)
    counters.pass_over("still")
    served.metrics.stream("b")
    with served.open("/state") as answer:
        a, b = json.load(answer)["streams"]
    assert (a["looked"], a["glanced"]) == ({"motion": 2, "hold": 1}, {"still": 1})
    assert (b["looked"], b["glanced"]) == ({}, {})


def test_the_state_holds_counters_and_no_address(served: Served) -> None:
    counters = served.metrics.stream("gate")
    counters.received, counters.published = 10, 7
    counters.drop("ring_full", 3)
    served.metrics.capture_to_publish.tally("gate").observe(0.033)
    served.metrics.stage_duration.tally("infer").observe(0.01)
    detail = "rtsp://***@10.1.2.3:554/h264/secretpath: nothing listens at that address (see http://10.1.2.3/x)"
    served.board.post(StreamStatus("gate", "BACKOFF", "refused", detail, 0, time.time_ns(), retry_in_s=2.5))
    served.board.post(StreamStatus("yard", "CONNECTING", "", "", 0, time.time_ns()))
    with served.open("/state") as answer:
        body = answer.read()
    assert b"10.1.2.3" not in body
    assert b"secretpath" not in body
    state = json.loads(body)
    gate, yard = state["streams"]
    assert gate["detail"].startswith("nothing listens at that address")
    assert (gate["received"], gate["published"], gate["dropped"]) == (10, 7, {"ring_full": 3})
    assert (gate["retry_in_s"], gate["attempts"]) == (2.5, 0)
    assert "max_fps" not in gate
    assert len(gate["latency"]["buckets"]) == len(state["bounds"]) + 1
    assert gate["latency"]["buckets"][-1] == 1
    assert (yard["stream"], yard["latency"]) == ("yard", {"buckets": []})
    assert state["stages"]["infer"]["count"] == 1


@pytest.mark.parametrize(
    ("detail", "told"),
    [
        ("/srv/a.mp4: not found; check the path", "not found; check the path"),
        ("rtsp://u@h/x?y=1: silence (after 5 s)", "silence (after 5 s)"),
        ("stream gate: told to break", "stream gate: told to break"),
        ("", ""),
    ],
)
def test_details_lose_their_address(detail: str, told: str) -> None:
    assert without_addresses(detail) == told


BASE = "model: {path: none}\nengine: {kind: 'null'}\nstreams: [{id: a, kind: synthetic}]\n"


@pytest.mark.parametrize(
    ("metrics", "problem"),
    [
        ("{page: true}", None),
        ("{page: true, listen: 'localhost:1'}", None),
        ("{page: true, listen: '[::1]:1'}", None),
        ("{page: true, listen: '127.8.0.1:1'}", None),
        ("{page: true, listen: null}", "metrics.page: needs metrics.listen; set it"),
        ("{page: true, listen: '0.0.0.0:9188'}", "0.0.0.0:9188 can be reached from other machines"),
        ("{page: true, listen: '[::]:9188'}", "can be reached from other machines"),
        ("{page: true, listen: 'cameras:9188'}", "can be reached from other machines"),
        ("{listen: '0.0.0.0:9188'}", None),
    ],
)
def test_pictures_are_not_for_everybody(tmp_path: Path, metrics: str, problem: str | None) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(f"{BASE}metrics: {metrics}\n")
    if problem is None:
        load(path)
        return
    with pytest.raises(ConfigError, match=re.escape(problem)):
        load(path)


def test_there_is_no_page_unless_asked_for(tmp_path: Path) -> None:
    with daemon(tmp_path, BASE) as running:
        assert [running.get(p)[0] for p in ("/", "/state", "/pictures", "/metrics")] == [404, 404, 404, 200]
