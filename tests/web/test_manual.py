"""The documentation on the page: what is served, and that every page of it is rendered whole."""

from __future__ import annotations

from email.message import Message
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser

from streamd.telemetry.routes import Request
from streamd.web.manual import Manual, folder
from tests.conftest import ROOT
from tests.web import seeded
from tests.web.browsing import CONTRAST, PATIENCE_MS

LEFT_OVER = """() => ({
    marks: [...document.querySelectorAll('#text p, #text li, #text td, #text h2, #text h3')].map(node => {
        const copy = node.cloneNode(true);
        copy.querySelectorAll('code').forEach(code => code.remove());
        return copy.textContent;
    }).filter(text => /`|\\*\\*|\\]\\(|^\\||^#/.test(text)),
    nowhere: [...document.querySelectorAll('#text a[href^="#"]')].map(a => a.getAttribute('href'))
        .filter(href => !document.getElementById(decodeURIComponent(href.slice(1)))),
    wide: document.documentElement.scrollWidth > innerWidth,
    code: document.querySelectorAll('#text pre').length,
    tables: document.querySelectorAll('#text table').length,
})"""


def ask(manual: Manual, path: str) -> tuple[int, Any]:
    response = manual.answer(Request(path, {}, Message()))
    return response.code, response.body


def test_only_pages_of_the_documentation_are_served(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("# Guide\n")
    (tmp_path / "secret.txt").write_text("x")
    manual = Manual(tmp_path)
    assert ask(manual, "/docs/") == (200, b'["README"]')
    assert ask(manual, "/docs/README.md") == (200, b"# Guide\n")
    for path in ("/docs/README", "/docs/secret.txt", "/docs/../README.md", "/docs/x.md", "/docs/README.md/x.md"):
        assert ask(manual, path)[0] == 404
    assert ask(Manual(None), "/docs/") == (200, b"[]")
    assert folder() == ROOT / "docs"


def test_every_page_is_rendered_whole(browser: Browser, tmp_path: Path) -> None:
    with seeded.page(tmp_path) as served:
        context = browser.new_context(viewport={"width": 390, "height": 844})
        context.set_default_timeout(PATIENCE_MS)
        page = context.new_page()
        failures: list[str] = []
        page.on("pageerror", lambda e: failures.append(str(e)))
        for file in sorted((ROOT / "docs").glob("*.md")):
            page.goto(f"http://127.0.0.1:{served.port}/docs.html?page={file.stem}")
            page.locator("#text h1").first.wait_for()
            found = page.evaluate(LEFT_OVER)
            text = file.read_text()
            assert (found["marks"], found["nowhere"], found["wide"]) == ([], [], False), file.name
            assert found["code"] >= text.count("\n```") // 2, file.name
            assert found["tables"] == text.count("\n|--") + text.count("\n| --") + text.count("\n|:-"), file.name
        page.goto(f"http://127.0.0.1:{served.port}/docs.html?page=evidence")
        page.locator("#text a", has_text="event journal").click()
        page.wait_for_url("**/docs.html?page=events#the-journal")
        page.locator("#the-journal").wait_for()
        assert page.evaluate(CONTRAST) == {}
        assert failures == []
        context.close()


@pytest.mark.parametrize("text", ["<img src=x onerror=alert(1)>", "[x](javascript:alert(1))"])
def test_nothing_in_a_page_is_executed(browser: Browser, tmp_path: Path, text: str) -> None:
    with seeded.page(tmp_path) as served:
        page = browser.new_page()
        page.route("**/docs/README.md", lambda route: route.fulfill(body=f"# Guide\n\n{text}\n"))
        page.goto(f"http://127.0.0.1:{served.port}/docs.html")
        page.locator("#text h1").wait_for()
        assert page.locator("#text img").count() == 0
        assert page.locator("#text a").count() == 0
        page.close()
