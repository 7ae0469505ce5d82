"""Log, configuration and bundles over HTTP."""

from __future__ import annotations

import io
import json
import tarfile
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry

from streamd.errors import SinkError
from streamd.security.redact import remember
from streamd.telemetry.http import HttpServer
from streamd.telemetry.tail import Tail
from streamd.web import diagnostics
from streamd.web.diagnostics import Diagnostics
from streamd.web.guard import guard


class Served:
    """Diagnostics on a port."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.tail, self.calls = folder, Tail(), 0
        self.files: list[Path] = []
        self.go = threading.Event()
        self.go.set()
        self.settings: Any = {"streams": []}
        made = Diagnostics("boot", lambda: self.settings, self.make, self.tail)
        self.http = HttpServer("127.0.0.1:0", CollectorRegistry(), lambda: (True, {}), lambda: (True, {}))
        for path, handler in (("/log", made.lines), ("/config", made.config), ("/bundle", made.bundle)):
            self.http.route(path, guard(handler, login=False))
        self.http.start()

    def make(self) -> Sequence[Path]:
        self.calls += 1
        self.go.wait(30)
        if not self.files:
            raise SinkError("no recorder; set recorder.folder")
        return self.files

    def get(self, path: str, **headers: str) -> tuple[int, dict[str, str], bytes]:
        request = urllib.request.Request(f"http://127.0.0.1:{self.http.port}{path}", headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return answer.status, dict(answer.headers), answer.read()
        except urllib.error.HTTPError as error:
            return error.code, dict(error.headers), error.read()


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    made = Served(tmp_path)
    yield made
    made.go.set()
    made.http.close()


def test_the_log_is_followed_by_numbers(served: Served) -> None:
    for n in range(3):
        served.tail.add({"event": f"e{n}", "level": "info"})
    first = json.loads(served.get("/log?limit=2")[2])
    assert (first["boot_id"], [line["event"] for line in first["lines"]]) == ("boot", ["e1", "e2"])
    assert json.loads(served.get(f"/log?after={first['next']}")[2]) == {
        "boot_id": "boot", "next": first["next"], "lines": [],
    }  # fmt: skip
    served.tail.add({"event": "e3"})
    assert [line["event"] for line in json.loads(served.get(f"/log?after={first['next']}")[2])["lines"]] == ["e3"]
    for wrong in ("after=x", "limit=0", "limit=100000", "limit=x"):
        code, _, body = served.get(f"/log?{wrong}")
        assert (code, b"expected" in body) == (400, True)


def test_the_configuration_is_yaml_without_secrets(served: Served) -> None:
    remember(['ge\'heim: "x"\n#2'])
    url = "rtsp://admin:inline@10.0.0.7/x?token=abcdef"
    served.settings = {"streams": [{"id": "yard", "url": url, "options": {"k": 'ge\'heim: "x"\n#2'}}], "n": "ä"}
    code, headers, body = served.get("/config")
    assert (code, headers["Content-Type"]) == (200, "text/plain; charset=utf-8")
    stream = yaml.safe_load(body)["streams"][0]
    assert stream["id"] == "yard"
    assert stream["url"].endswith("@10.0.0.7/x?token=***")
    assert stream["options"] == {"k": "***"}
    assert not any(secret in body.decode() for secret in ("inline", "abcdef", "heim"))
    assert served.get("/config?download")[1]["Content-Disposition"] == 'attachment; filename="streamd.yaml"'


def test_one_bundle_is_sent_as_it_is_and_several_as_one_archive(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(diagnostics, "AGAIN_S", 0.0)
    for n in range(2):
        (served.folder / f"yard-worker{n}-x.tar.gz").write_bytes(bytes([n]) * (700_000 + n))
    served.files = sorted(served.folder.glob("*.tar.gz"))[:1]
    code, headers, body = served.get("/bundle")
    assert (code, headers["Content-Type"], body) == (200, "application/gzip", bytes(700_000))
    assert headers["Content-Disposition"] == 'attachment; filename="yard-worker0-x.tar.gz"'
    served.files = sorted(served.folder.glob("*.tar.gz"))
    code, headers, body = served.get("/bundle")
    assert (code, headers["Content-Type"]) == (200, "application/x-tar")
    with tarfile.open(fileobj=io.BytesIO(body)) as archive:
        content = {m.name: archive.extractfile(m).read() for m in archive}  # type: ignore[union-attr]
    assert content == {f.name: f.read_bytes() for f in served.files}


def test_bundles_are_made_one_at_a_time_and_not_too_often(served: Served) -> None:
    code, _, body = served.get("/bundle")
    assert (code, body) == (503, b"no recorder; set recorder.folder\n")
    served.files = [served.folder / "x.tar.gz"]
    served.files[0].write_bytes(b"x")
    served.go.clear()
    answers: list[int] = []
    first = threading.Thread(target=lambda: answers.append(served.get("/bundle")[0]))
    first.start()
    while served.calls < 2:
        first.join(0.01)
    code, headers, _ = served.get("/bundle")
    assert (code, headers["Retry-After"]) == (503, "5")
    served.go.set()
    first.join(30)
    assert answers == [200]
    assert served.get("/bundle")[2] == b"x"
    assert served.calls == 2


@pytest.mark.parametrize(("site", "code"), [("same-origin", 200), ("none", 200), ("cross-site", 403)])
def test_another_site_cannot_make_a_bundle(served: Served, site: str, code: int) -> None:
    served.files = [served.folder / "x.tar.gz"]
    served.files[0].write_bytes(b"x")
    assert served.get("/bundle", **{"Sec-Fetch-Site": site})[0] == code
    assert served.calls == (code == 200)
