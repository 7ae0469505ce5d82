"""The HTTP port as configured: metrics and health checks, and the page if enabled."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import structlog
from prometheus_client import CollectorRegistry

from streamd.config import MetricsSettings, is_loopback
from streamd.errors import SinkError
from streamd.events.journal import Journal
from streamd.flow.settings import StreamSettings
from streamd.telemetry.access import Login, Tls
from streamd.telemetry.http import HttpServer
from streamd.telemetry.logs import recent
from streamd.telemetry.routes import Check
from streamd.types import StreamStatus
from streamd.web.archive import Archive
from streamd.web.diagnostics import Diagnostics
from streamd.web.guard import guard
from streamd.web.live import Live
from streamd.web.manual import Manual, folder
from streamd.web.page import Page
from streamd.web.rules import Rules
from streamd.web.state import State
from streamd.web.tap import Tap

log = structlog.get_logger(__name__)


def urls_of(settings: MetricsSettings, http: HttpServer | None) -> dict[str, str | None]:
    """Where a browser finds the page and a scraper the metrics, for the log; None for what is not served."""
    if http is None or settings.listen is None:
        return {"page": None, "metrics": None}
    host = settings.listen.rpartition(":")[0]
    if host in ("0.0.0.0", "[::]"):  # noqa: S104 - a comparison
        host = socket.gethostname()  # an address that a browser can use
    base = f"{'https' if settings.tls else 'http'}://{host}:{http.port}"
    return {"page": f"{base}/" if settings.page else None, "metrics": f"{base}/metrics"}


def sentences_of(health: Mapping[str, Any]) -> list[str]:
    """What the page tells of the health answer's body. Of sinks it tells nothing: their addresses are not for viewers
    of cameras."""
    words = {"problem": "streamd does not work", "events": "Events are not recorded", "media": "Clips of events"}
    return [f"{told}: {text}." for key, told in words.items() if (text := health.get(key))]


def _no_bundles() -> Sequence[Path]:
    raise SinkError("there is no flight recorder")


def open_port(
    metrics: MetricsSettings,
    registry: CollectorRegistry,
    health: Check,
    ready: Check,
    *,
    statuses: Callable[[], Iterable[StreamStatus]],
    boot_id: str,
    streams: Callable[[], Sequence[StreamSettings]] = tuple,
    journal: Callable[[], Journal | None] = lambda: None,
    settings: Callable[[], Any] = dict,
    bundles: Callable[[], Sequence[Path]] = _no_bundles,
) -> tuple[HttpServer | None, Tap | None]:
    """Opens the port and starts serving.

    Args:
        metrics: address, certificate, login, page.
        registry: metrics for /metrics.
        health: check behind /healthz.
        ready: check behind /readyz.
        statuses: the latest status of every stream, for the page.
        boot_id: identity of this process.
        streams: the settings of every stream, for the page's zones and lines; another sequence after a reload.
        journal: the open event journal, for past events; None while there is none.
        settings: the configuration as JSON values, for people; its secrets are removed here.
        bundles: makes support bundles, see `Diagnostics`.

    Returns:
        The server, or None if disabled, and the tap for the page's pictures, or None without a page.

    Raises:
        SinkError: the address cannot be bound, or the certificate cannot be used.
    """
    if metrics.listen is None:
        return None, None
    tls = Tls(metrics.tls.certificate, metrics.tls.key) if metrics.tls else None
    login = Login(metrics.login.username, metrics.login.password.get_secret_value()) if metrics.login else None
    if login is not None and tls is None and not is_loopback(metrics.listen):
        log.warning(
            "metrics port: the password crosses the network unencrypted; set metrics.tls", listen=metrics.listen
        )
    http = HttpServer(metrics.listen, registry, health, ready, tls=tls, login=login)
    tap = None
    if metrics.page:
        tap = Tap()
        state = State(registry, statuses, boot_id, Rules(streams), lambda: sentences_of(health()[1]))
        http.route("/", Page(tap, state, guarded=login is not None).answer)
        live, archive = Live(tap, state.known), Archive(journal)
        diagnostics = Diagnostics(boot_id, settings, bundles, recent)
        for path, handler in (
            ("/snapshot/", live.snapshot), ("/stream/", live.stream), ("/events", archive.events),
            ("/media/", archive.media), ("/log", diagnostics.lines), ("/config", diagnostics.config),
            ("/bundle", diagnostics.bundle), ("/docs/", Manual(folder()).answer),
        ):  # fmt: skip
            http.route(path, guard(handler, login=login is not None))
    http.start()
    return http, tap
