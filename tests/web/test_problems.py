"""What is wrong with the daemon itself, on the page."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import expect

from streamd.web.port import sentences_of
from tests.behaviour.daemon import Running, daemon

HANGS = """
model: {path: none, labels: [person]}
engine: {kind: 'null', hang_after: 50}
stall_s: 2
drain_s: 1
streams: [{id: gate, kind: synthetic, fps: 20, width: 320, height: 240}]
"""


def test_all_of_it_is_told_but_sinks() -> None:
    body: dict[str, Any] = {"ok": True, "problem": None, "boot_id": "b", "sinks": {"mqtt": "mqtt://10.0.0.1: refused"}}
    assert sentences_of(body) == []
    body |= {"problem": "stage infer has made no progress for 2 s", "events": "disk full", "media": "disk full"}
    assert sentences_of(body) == [
        "streamd does not work: stage infer has made no progress for 2 s.",
        "Events are not recorded: disk full.",
        "Clips of events: disk full.",
    ]


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    with daemon(tmp_path, HANGS, metrics="page: true") as running:
        yield running
        running.process.kill()


def test_an_engine_that_hangs(visit: Any) -> None:
    """The cameras only say that frames are dropped."""
    page = visit()
    expect(page.locator(".tile[data-stream=gate]")).to_be_visible()
    expect(page.get_by_role("alert")).to_have_text(
        "streamd does not work: stage postprocess has made no progress for 2 s."
    )
