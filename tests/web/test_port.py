"""Where the log says that the page and the metrics are."""

from __future__ import annotations

import socket
from types import SimpleNamespace
from typing import Any

import pytest

from streamd.config import MetricsSettings
from streamd.web.port import urls_of

TLS = {"certificate": "c.pem", "key": "k.pem"}


@pytest.mark.parametrize(
    ("values", "page", "metrics"),
    [
        ({"listen": "127.0.0.1:0"}, None, "http://127.0.0.1:9188/metrics"),
        ({"listen": "localhost:9188", "page": True}, "http://localhost:9188/", "http://localhost:9188/metrics"),
        ({"listen": "[::1]:9188", "page": True}, "http://[::1]:9188/", "http://[::1]:9188/metrics"),
        ({"listen": "0.0.0.0:9188", "tls": TLS}, None, f"https://{socket.gethostname()}:9188/metrics"),
        ({"listen": None}, None, None),
    ],
)
def test_addresses_for_people(values: dict[str, Any], page: str | None, metrics: str | None) -> None:
    http: Any = SimpleNamespace(port=9188) if values["listen"] else None
    assert urls_of(MetricsSettings.model_validate(values), http) == {"page": page, "metrics": metrics}
