"""Chromium from the distribution, driven by Playwright."""

from __future__ import annotations

import time

from playwright.sync_api import Page

FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync"]  # fmt: skip
PATIENCE_MS = 20_000
_PAINTED = """canvas => {
    const data = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
    return new Set([...data].filter((_, i) => i % 4 === 0)).size > 10;
}"""


def painted(page: Page, selector: str) -> None:
    """Waits until a canvas shows more than one colour."""
    deadline = time.monotonic() + PATIENCE_MS / 1000
    while not page.locator(selector).evaluate(_PAINTED):
        assert time.monotonic() < deadline, "no picture"
        page.wait_for_timeout(100)
