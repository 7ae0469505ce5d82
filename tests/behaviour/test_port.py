"""The metrics port of a running daemon: HTTPS, a login for every path, and nothing for anybody else."""

from __future__ import annotations

import base64
import ssl
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from tests.behaviour.daemon import daemon
from tests.telemetry.test_http import make_certificate

CONFIG = 'model: {path: none}\nengine: {kind: "null"}\nstreams: [{id: a, kind: synthetic, fps: 20}]\n'


@pytest.mark.parametrize("workers", [1, 2])
def test_https_and_a_login(tmp_path: Path, workers: int) -> None:
    certificate, _ = make_certificate(tmp_path, "port")
    (tmp_path / "password").write_text("metrics-geheim\n")
    metrics = (
        "page: true, tls: {certificate: port.pem, key: port.key}, "
        "login: {username: prometheus, password: '${file:password}'}"
    )
    with daemon(tmp_path, f"workers: {workers}\n{CONFIG}", metrics=metrics) as running:
        trust = ssl.create_default_context(cafile=str(certificate))

        def get(path: str, login: str = "", scheme: str = "https") -> int:
            headers = {"Authorization": "Basic " + base64.b64encode(login.encode()).decode()} if login else {}
            request = urllib.request.Request(f"{scheme}://localhost:{running.port}{path}", headers=headers)
            try:
                with urllib.request.urlopen(request, timeout=10, context=trust) as answer:
                    return int(answer.status)
            except urllib.error.HTTPError as error:
                return error.code

        for path in ("/metrics", "/healthz", "/", "/state", "/log", "/config"):
            assert get(path, "prometheus:metrics-geheim") == 200, path
            assert get(path) == 401, path
            assert get(path, "prometheus:metrics-gehein") == 401, path
        with pytest.raises(OSError, match=r"."):
            get("/metrics", "prometheus:metrics-geheim", scheme="http")
        assert running.stop() == 0
    assert "metrics-geheim" not in (tmp_path / "log").read_text()
