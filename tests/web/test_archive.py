"""Past events and their files over HTTP, from a real journal."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from streamd.events.record import Media
from streamd.telemetry.http import MAX_STREAMS, HttpServer
from streamd.web.archive import MAX_RANGE, SMALL, Archive, filter_of, time_ns
from streamd.web.guard import guard
from tests.events.journals import SECOND, T0, event, journal


class Served:
    """An archive on a port."""

    def __init__(self, archive: Archive) -> None:
        self.http = HttpServer("127.0.0.1:0", CollectorRegistry(), lambda: (True, {}), lambda: (True, {}))
        self.http.route("/events", guard(archive.events, login=False))
        self.http.route("/media/", guard(archive.media, login=False))
        self.http.start()

    def get(self, path: str, **headers: str) -> tuple[int, dict[str, str], bytes]:
        request = urllib.request.Request(f"http://127.0.0.1:{self.http.port}{path}", headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return answer.status, dict(answer.headers), answer.read()
        except urllib.error.HTTPError as error:
            return error.code, dict(error.headers), error.read()

    def events(self, query: str = "") -> Any:
        code, _, body = self.get(f"/events{query}")
        assert code == 200, body
        return json.loads(body)


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    clip = tmp_path / "x.mp4"
    clip.write_bytes(bytes(range(256)) * 40)
    with journal(tmp_path / "state") as one:
        for i in range(5):
            one.submit(event(f"e/{i}", at_s=i, stream="ab"[i % 2], label=("person", "car")[i % 2]))
        one.link("e/4", "clip", Media(str(clip)))
        one.link("e/2", "clip", Media(str(tmp_path / "gone.mp4")))
        one.link("e/0", "clip", Media(str(clip), "failed", "disk_full"))
        assert one.flush()
        made = Served(Archive(lambda: one))
        yield made
        made.http.close()


def test_the_newest_come_first_in_pages(served: Served) -> None:
    first = served.events("?limit=3")
    assert [e["id"] for e in first["events"]] == ["e/4", "e/3", "e/2"]
    second = served.events(f"?limit=3&before={first['next']}")
    assert [e["id"] for e in second["events"]] == ["e/1", "e/0"]
    assert second["next"] is None
    assert [e["id"] for e in served.events("?order=oldest&limit=2")["events"]] == ["e/0", "e/1"]


def test_events_are_chosen_by_stream_label_and_time(served: Served) -> None:
    assert [e["id"] for e in served.events("?stream=b")["events"]] == ["e/3", "e/1"]
    assert [e["id"] for e in served.events("?label=person&stream=a,b")["events"]] == ["e/4", "e/2", "e/0"]
    since, until = T0 // SECOND + 1, T0 // SECOND + 3
    assert [e["id"] for e in served.events(f"?since={since}&until={until}")["events"]] == ["e/2", "e/1"]


def test_no_path_of_the_machine_is_told(served: Served, tmp_path: Path) -> None:
    _, _, body = served.get("/events")
    assert str(tmp_path) not in body.decode()
    media = {e["id"]: e["media"].get("clip") for e in served.events()["events"]}
    assert media["e/4"] == {"state": "written", "reason": "", "name": "x.mp4", "url": "media/e%2F4/clip"}
    assert media["e/0"] == {"state": "failed", "reason": "disk_full", "name": "x.mp4"}


@pytest.mark.parametrize(
    "query",
    [
        "limit=0",
        "limit=1001",
        "limit=x",
        "since=yesterday",
        "since=1e400",
        "color=red",
        "order=up",
        "before=1.5",
        "since=1e300",
        "until=-1e30",
        "before=99999999999999999999",
        "after=" + "9" * 5000,
        "since=nan",
        "id=" + "a," * 501,
    ],
)
def test_a_wrong_question_gets_an_answer_that_helps(served: Served, query: str) -> None:
    code, _, body = served.get(f"/events?{query}")
    assert code == 400
    assert b"expected" in body


@pytest.mark.parametrize(
    "asked",
    ["bytes=" + "9" * 5000 + "-", "bytes=٣-", "bytes=5-2", "x", "bytes=0-0,1-1", "bytes=-", "items=0-5", "bytes=--5"],
)
def test_what_is_no_range_or_several_is_answered_with_all(served: Served, asked: str) -> None:
    code, headers, body = served.get("/media/e%2F4/clip", Range=asked.encode().decode("latin-1"))
    assert (code, len(body), "Content-Range" in headers) == (200, 256 * 40, False)


@pytest.mark.parametrize("asked", ["bytes=10240-", "bytes=99999999999999999999-", "bytes=10240-10300", "bytes=-0"])
def test_a_range_behind_the_end_is_refused(served: Served, asked: str) -> None:
    code, headers, body = served.get("/media/e%2F4/clip", Range=asked)
    assert (code, headers["Content-Range"], body) == (416, "bytes */10240", b"")


@pytest.mark.parametrize(
    ("asked", "first", "last"),
    [
        ("bytes=-5", 10235, 10239), ("bytes=-99999999999999999999", 0, 10239),
        ("bytes=0-99999999999999999999", 0, 10239),
        ("bytes=0-0", 0, 0), ("bytes=10239-", 10239, 10239), ("Bytes=7-8", 7, 8), (" bytes=0-1 ", 0, 1),
    ],
)  # fmt: skip
def test_ranges_from_either_end(served: Served, asked: str, first: int, last: int) -> None:
    code, headers, body = served.get("/media/e%2F4/clip", Range=asked)
    assert (code, headers["Content-Range"]) == (206, f"bytes {first}-{last}/10240")
    assert body == (bytes(range(256)) * 40)[first : last + 1]


def test_files_are_served_whole_and_in_ranges(served: Served) -> None:
    whole = bytes(range(256)) * 40
    code, headers, body = served.get("/media/e%2F4/clip")
    assert (code, body) == (200, whole)
    assert headers["Content-Type"] == "video/mp4"
    assert headers["Content-Length"] == str(len(whole))
    assert headers["Accept-Ranges"] == "bytes"
    assert "media-src 'self'" in headers["Content-Security-Policy"]
    code, headers, body = served.get("/media/e%2F4/clip", Range="bytes=100-199")
    assert (code, body, headers["Content-Range"]) == (206, whole[100:200], f"bytes 100-199/{len(whole)}")
    assert served.get("/media/e%2F4/clip", Range="bytes=10000-")[2] == whole[10000:]
    assert served.get("/media/e%2F4/clip", Range=f"bytes={len(whole)}-")[0] == 416
    _, headers, _ = served.get("/media/e%2F4/clip?download")
    assert headers["Content-Disposition"] == 'attachment; filename="x.mp4"'


def test_pictures_are_sent_while_all_long_answers_are_taken(served: Served, tmp_path: Path) -> None:
    for _ in range(MAX_STREAMS):
        served.http._server.streams.acquire()
    assert served.get("/media/e%2F4/clip")[0] == 200
    (tmp_path / "x.mp4").write_bytes(bytes(SMALL + 1))
    assert served.get("/media/e%2F4/clip")[0] == 503
    served.http._server.streams.release()
    assert served.get("/media/e%2F4/clip")[2] == bytes(SMALL + 1)


def test_a_large_range_is_answered_in_parts(served: Served, tmp_path: Path) -> None:
    (tmp_path / "x.mp4").write_bytes(bytes(MAX_RANGE + 10))
    code, headers, body = served.get("/media/e%2F4/clip", Range="bytes=0-")
    assert (code, len(body)) == (206, MAX_RANGE)
    assert headers["Content-Range"] == f"bytes 0-{MAX_RANGE - 1}/{MAX_RANGE + 10}"


@pytest.mark.parametrize(
    "path",
    [
        "/media/",
        "/media/e/4/",
        "/media/e/4/snapshot",
        "/media/e/2/clip",
        "/media/e/0/clip",
        "/media/../state/events.db",
    ],
)
def test_only_files_of_events_are_served(served: Served, path: str) -> None:
    assert served.get(path)[0] == 404


def test_without_a_journal_there_are_no_events() -> None:
    served = Served(Archive(lambda: None))
    assert served.events() == {"events": [], "next": None}
    assert served.get("/media/e/clip")[0] == 404
    served.http.close()


def test_times_are_seconds_or_iso() -> None:
    assert time_ns("1800000000.5") == 1_800_000_000_500_000_000
    assert time_ns("2027-01-15T08:00:00Z") == 1_800_000_000_000_000_000
    assert time_ns("2027-01-15T09:00:00+01:00") == 1_800_000_000_000_000_000
    assert time_ns("2027-01-15T08:00:00") == 1_800_000_000_000_000_000
    assert filter_of({"kind": "begin,instant"}).kinds == ("begin", "instant")
