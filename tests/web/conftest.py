"""A browser for each module, and visits to the daemon that the module runs as `running`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, expect, sync_playwright

from tests.behaviour.daemon import Running
from tests.conftest import program
from tests.web.browsing import FLAGS, PATIENCE_MS


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A browser test that takes too long ends its process: Playwright, interrupted by an exception, never returns."""
    for item in items:
        if "browser" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.timeout(180, method="thread"))


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    found = program("chromium", "chromium")
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=found, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def visit(running: Running, browser: Browser) -> Iterator[Any]:
    """Opens a page in a context of its own; afterwards, nothing may have been complained about."""
    contexts: list[BrowserContext] = []
    complaints: list[str] = []

    def complain(message: ConsoleMessage) -> None:
        # Reading pixels back is this test's doing, not the page's.
        if message.type in ("error", "warning") and not message.text.startswith("Canvas2D"):
            complaints.append(message.text)

    def visit(path: str = "", **options: Any) -> Page:
        context = browser.new_context(**{"viewport": {"width": 1440, "height": 900}, **options})
        context.set_default_timeout(PATIENCE_MS)
        contexts.append(context)
        page = context.new_page()
        page.on("console", complain)
        page.on("pageerror", lambda e: complaints.append(str(e)))
        page.goto(f"http://127.0.0.1:{running.port}/{path}")
        return page

    expect.set_options(timeout=PATIENCE_MS)
    yield visit
    for context in contexts:
        context.close()
    assert complaints == []
