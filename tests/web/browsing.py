"""Chromium from the distribution, driven by Playwright."""

from __future__ import annotations

import time

from playwright.sync_api import Page

FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage"]  # fmt: skip
PATIENCE_MS = 20_000
_PAINTED = """canvas => {
    const data = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
    return new Set([...data].filter((_, i) => i % 4 === 0)).size > 10;
}"""
CONTRAST = """() => {
    const number = color => {
        const pen = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
        pen.fillStyle = color;
        pen.fillRect(0, 0, 1, 1);
        return [...pen.getImageData(0, 0, 1, 1).data].slice(0, 3).map(v => {
            v /= 255;
            return v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
        });
    };
    const light = color => number(color).reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
    const ground = node => {
        for (; node; node = node.parentElement) {
            const color = getComputedStyle(node).backgroundColor;
            if (!/, 0\\)$|transparent/.test(color)) return color;
        }
    };
    const found = {};
    for (const node of document.querySelectorAll('b, span, dt, dd, p, button, h1, h2, i, a')) {
        const own = [...node.childNodes].some(n => n.nodeType === 3 && n.textContent.trim());
        if (!own || !node.checkVisibility() || node.closest('.over, .unseen, .skip')) continue;
        const [a, b] = [light(getComputedStyle(node).color), light(ground(node))].sort((x, y) => y - x);
        const ratio = (a + 0.05) / (b + 0.05);
        if (ratio < 4.5) found[`${node.tagName}.${node.className} ${node.textContent}`] = ratio;
    }
    return found;
}"""
"""Text by what stands out too little from its ground (WCAG: 4.5), with its ratio."""


def painted(page: Page, selector: str) -> None:
    """Waits until a canvas shows more than one colour."""
    deadline = time.monotonic() + PATIENCE_MS / 1000
    while not page.locator(selector).evaluate(_PAINTED):
        assert time.monotonic() < deadline, "no picture"
        page.wait_for_timeout(100)
