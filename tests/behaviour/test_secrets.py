"""Secrets planted everywhere, cameras that fail in every way, and then a search through all that streamd says."""

from __future__ import annotations

import base64
import contextlib
import http.server
import io
import os
import re
import signal
import socket
import subprocess
import sys
import tarfile
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import zmq

from streamd.cli import main
from streamd.sinks.curve import new_pair, secure_client
from tests.behaviour.daemon import Running, until
from tests.runtime.recorder.archive import Archive, found

ENVIRONMENT = {"CAM_PASSWORD": "env-geheim/1@%", "METRICS_PASSWORD": "metrics-geheim-2", "API_KEY": "api-geheim-3"}
FILES = {"camera": "file-geheim-4", "key": new_pair()[1], "bearer": "bearer-geheim-5"}
INLINE = ("inline-geheim-6", "query-geheim-7", "option-geheim-8")
SECRETS = (*ENVIRONMENT.values(), *FILES.values(), *INLINE)

RUN = """
import sys
from streamd.cli import main
from streamd.sources.av_source import AvSource

real = AvSource.open

def broken(self):
    if self._settings.id == "bug":
        raise RuntimeError(f"{self._settings.url} with {self._settings.options}")
    return real(self)

AvSource.open = broken
sys.exit(main(["run", sys.argv[1]]))
"""
"""The daemon, with a bug in it whose message has everything."""


def forms(secret: str) -> set[str]:
    basic = {base64.b64encode(f"{user}:{secret}".encode()).decode() for user in ("admin", "prometheus")}
    return {secret, quote(secret), quote(secret, safe=""), *basic}


def leaked(text: str | bytes) -> list[str]:
    if isinstance(text, bytes):
        text = text.decode(errors="replace")
    return [form for secret in SECRETS for form in forms(secret) if form in text]


class Refusing(http.server.BaseHTTPRequestHandler):
    """A camera that knows no password, and repeats in its answer what it was asked."""

    def do_GET(self) -> None:
        self.send_response_only(401, f"no {self.path}")
        self.send_header("WWW-Authenticate", f'Basic realm="{self.headers.get("Authorization", "")}"')
        self.end_headers()

    def log_message(self, *_: Any) -> None: ...


@pytest.fixture
def camera() -> Iterator[int]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Refusing)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server.server_address[1]
    server.shutdown()
    server.server_close()
    thread.join()


def config(folder: Path, camera: int, closed: int, client: str) -> str:
    for name, text in FILES.items():
        (folder / name).write_text(f"{text}\n")
        (folder / name).chmod(0o600)
    return f"""
model: {{path: none}}
engine: {{kind: "null"}}
logging: {{level: debug, format: json}}
recorder: {{folder: bundles}}
metrics:
  listen: "127.0.0.1:0"
  page: true
  login: {{username: prometheus, password: "${{METRICS_PASSWORD}}"}}
sinks:
  - kind: zmq
    bind: "ipc://{folder}/z"
    curve: {{secret_key: "${{file:$CREDENTIALS_DIRECTORY/key}}", clients: ["{client}"]}}
streams:
  - {{id: good, kind: synthetic, fps: 20}}
  - {{id: env, url: "rtsp://admin:${{CAM_PASSWORD}}@127.0.0.1:{closed}/x"}}
  - {{id: inline, url: "rtsp://admin:inline-geheim-6@127.0.0.1:{closed}/x"}}
  - {{id: query, url: "http://127.0.0.1:{camera}/x?token=query-geheim-7&k=${{API_KEY}}"}}
  - {{id: file, url: "http://admin:${{file:camera}}@127.0.0.1:{camera}/x", isolation: process}}
  - id: header
    url: "http://127.0.0.1:{camera}/x"
    options: {{headers: "Authorization: Bearer ${{file:bearer}}\\r\\n", password: option-geheim-8}}
  - id: bug
    url: "rtsp://admin:${{CAM_PASSWORD}}@127.0.0.1:{closed}/${{file:camera}}?token=query-geheim-7"
    isolation: thread
    options: {{password: option-geheim-8, headers: "X: ${{API_KEY}}"}}
"""


def family(pid: int) -> set[int]:
    """The process and all that it has started."""
    members = {pid}
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                members |= family(int(child))
    return members


@pytest.mark.parametrize("workers", [1, 2])
def test_no_secret_is_told_anywhere(tmp_path: Path, camera: int, workers: int) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        closed = probe.getsockname()[1]
    client = new_pair()
    path, log = tmp_path / "yard.yaml", tmp_path / "log"
    path.write_text(config(tmp_path, camera, closed, client[0]) + f"workers: {workers}\n")
    path.chmod(0o600)
    server_key = zmq.curve_public(FILES["key"].encode()).decode()
    environment = {**os.environ, **ENVIRONMENT, "CREDENTIALS_DIRECTORY": str(tmp_path)}
    told: list[bytes] = []
    command_lines: set[bytes] = set()
    manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    manager.bind(str(tmp_path / "notify"))
    manager.settimeout(0.1)
    environment["NOTIFY_SOCKET"] = str(tmp_path / "notify")

    with log.open("w") as out, contextlib.ExitStack() as stack:
        stack.callback(manager.close)
        command = [sys.executable, "-c", RUN, str(path)]
        process = subprocess.Popen(command, stdout=out, stderr=out, text=True, env=environment)
        stack.callback(process.wait)
        stack.callback(process.kill)
        running = Running(process, log, path)
        until(lambda: running.port, 60, "the daemon starts")
        context = zmq.Context()
        stack.callback(context.destroy, linger=0)
        subscriber = context.socket(zmq.SUB)
        subscriber.subscribe(b"")
        secure_client(subscriber, server_key, client[1])
        subscriber.connect(f"ipc://{tmp_path}/z")

        def look() -> set[bytes]:
            """Every process's command line, as `ps` has it: decoder processes come and go."""
            for member in family(process.pid):
                with contextlib.suppress(OSError):
                    command_lines.add(Path(f"/proc/{member}/cmdline").read_bytes())
            return command_lines

        def states() -> set[str]:
            """Streams whose failure has been published."""
            look()
            while subscriber.poll(0):
                told.append(b" ".join(subscriber.recv_multipart()))
            failing = ("BACKOFF", "FAILED")
            return {
                name
                for name in ("env", "inline", "query", "file", "header", "bug")
                if any(f"/{name}/status".encode() in m and any(s.encode() in m for s in failing) for m in told)
            }

        until(lambda: len(states()) == 6, 60, "every camera fails")

        until(lambda: any(b"streamd.sources.decoder" in line for line in look()), 30)
        login = {"Authorization": "Basic " + base64.b64encode(b"prometheus:metrics-geheim-2").decode()}
        pages = {}
        for name in ("/metrics", "/healthz", "/readyz", "/state", "/", "/log", "/config", "/bundle"):
            request = urllib.request.Request(f"http://127.0.0.1:{running.port}{name}", headers=login)
            with contextlib.suppress(urllib.error.HTTPError):
                pages[name] = urllib.request.urlopen(request, timeout=30).read()
        assert {"/metrics", "/state", "/log", "/config", "/bundle"} <= pages.keys()
        for name in ("/metrics", "/log", "/config", "/bundle"):
            assert running.get(name)[0] == 401
        # Where workers run the streams, what they log and record is shown by the parent.
        assert b"rtsp://***@127.0.0.1" in pages["/log"]
        assert b"rtsp://***@127.0.0.1" in pages["/config"]
        with tarfile.open(fileobj=io.BytesIO(pages["/bundle"])) as sent:
            for entry in sent if workers > 1 else ():
                inner = sent.extractfile(entry)
                assert inner is not None
                (tmp_path / "bundles" / f"sent-{entry.name}").write_bytes(inner.read())
            assert len(sent.getnames()) == (2 if workers > 1 else 10)

        # A reload that is refused is told in the log, to the service manager and in metrics.
        good = path.read_text()
        path.write_text(good.replace("id: good", "id: good, fsp: 3").replace("?token=", "?pasword=1&token="))
        process.send_signal(signal.SIGHUP)
        until(lambda: any(line["event"].startswith("new configuration rejected") for line in running.log()), 20)
        notices: list[bytes] = []
        with contextlib.suppress(TimeoutError):
            while True:
                notices.append(manager.recv(65_536))
        path.write_text(good)

        done = subprocess.run(
            [sys.executable, "-m", "streamd", "bundle", str(path)], capture_output=True, env=environment, timeout=60
        )
        assert done.returncode == 0, done.stderr
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0

    bundles = [Archive(path) for path in found(tmp_path / "bundles")]
    assert bundles
    text = log.read_text()
    if workers == 1:  # the bug is in this process only
        assert "Traceback" in text or '"exception"' in text, "the bug's traceback is in the log"
        assert "RuntimeError" in text
    places: dict[str, Any] = {
        "log": text,
        "ps": b" ".join(command_lines),
        "messages": b" ".join(told),
        "notices": b" ".join(notices),
        "bundle command": done.stdout + done.stderr,
        "bundles": b" ".join(content for bundle in bundles for content in bundle.files.values()),
        **pages,
    }
    assert {name: leaked(place) for name, place in places.items() if leaked(place)} == {}


def test_check_tells_no_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    path = tmp_path / "c.yaml"
    good = config(tmp_path, 1, 2, new_pair()[0])
    for broken in (
        good,
        good.replace("fps: 20", "fps: '${API_KEY}'"),
        good.replace("id: env", "id: '${CAM_PASSWORD}'"),
        good.replace("kind: zmq", "kind: '${file:bearer}'"),
        good.replace("username: prometheus", "username: '${CAM_PASSWORD}:x'"),
        good.replace("password: option-geheim-8", "password: [option-geheim-8]"),
        good.replace("option-geheim-8", "!option-geheim-8"),
        good.replace('inline-geheim-6@127.0.0.1:2/x"', 'inline-geheim-6@127.0.0.1:2/x", loop: true'),
        good.replace('listen: "127.0.0.1:0"', "listen: '${METRICS_PASSWORD}'"),
        good + "\n  - {id: '${API_KEY}', url: 'rtsp://u:query-geheim-7@h', loop: true, extra: 1}\n",
        good + "\n}",
        good.replace("/key}", "/camera}"),
    ):
        path.write_text(broken)
        code = main(["check", str(path)])
        said = "".join(capsys.readouterr())
        assert code == 2, said
        # What is good otherwise has passwords with a raw slash, and is told how to write it.
        assert (set(re.findall(r"streams\[\d+\]\.url: (there is a raw /)", said)) == {"there is a raw /"}) or (
            broken is not good
        ), said
        assert leaked(said) == [], said


def test_a_crash_of_the_command_tells_no_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(
        "model: {path: m}\n"
        "streams: [{id: a, url: 'rtsp://u:${CAM_PASSWORD}@h', options: {password: option-geheim-8}}]\n"
    )
    monkeypatch.setenv("CAM_PASSWORD", ENVIRONMENT["CAM_PASSWORD"])

    def fail(loaded: Any, **_: Any) -> None:
        raise RuntimeError(repr(loaded))

    monkeypatch.setattr("streamd.cli.check.problems", fail)
    assert main(["check", str(path)]) == 1
    said = capsys.readouterr().err
    assert "RuntimeError: Config(" in said
    assert "rtsp://***@h" in said
    assert leaked(said) == []
