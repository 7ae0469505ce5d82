"""Names as long as a configuration allows, in a real browser: nothing is cut off, covered, or wider than the page."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from tests.behaviour.daemon import Running, daemon
from tests.web.browsing import painted

CAMERA = "warehouse-north-loading-dock-camera-number-seventeen-upper-left"
ZONE = "pavement-in-front-of-the-entrance-of-the-town-hall-on-the-left"
LINE = "north-south-crossing-for-pedestrians-and-bicycles-on-the-left"
WAYS = "towards-the-station-at-the-river", "towards-the-market-in-the-town"
CONFIG = f"""
model: {{path: none, labels: [person]}}
engine: {{kind: 'null', latency_ms: 2}}
tracking: {{}}
events: {{state_dir: STATE}}
streams:
  - id: {CAMERA}
    kind: synthetic
    fps: 10
    width: 320
    height: 240
    zones:
      - {{name: {ZONE}, points: [[0.1, 0.3], [0.5, 0.3], [0.5, 0.9]]}}
      - {{name: bench, points: [[0.2, 0.3], [0.6, 0.3], [0.6, 0.9]]}}
    lines:
      - {{name: {LINE}, points: [[0.2, 0.3], [0.25, 0.9]], directions: [{", ".join(WAYS)}]}}
      - {{name: lane, points: [[0.4, 0.3], [0.4, 0.9]]}}
  - {{id: yard, kind: synthetic, fps: 5, width: 320, height: 240}}
"""
_TAGS = """([names, width]) => import('./overlay.js').then(({ drawCounts }) => {
  const pen = document.createElement('canvas').getContext('2d');
  const tags = [];
  const spy = new Proxy(pen, {
    set: (target, name, value) => ((target[name] = value), true),
    get: (target, name) => (...given) => {
      if (name === 'roundRect') tags.push({ box: given.slice(0, 4) });
      if (name === 'fillText') tags.at(-1).text = given[0];
      return target[name](...given);
    },
  });
  const [zone, line, ways] = names;
  const rules = {
    zones: [
      { name: zone, points: [[0.1, 0.3], [0.5, 0.3], [0.5, 0.9]] },
      { name: 'bench', points: [[0.2, 0.3], [0.6, 0.3], [0.6, 0.9]] },
    ],
    lines: [
      { name: line, points: [[0.2, 0.3], [0.25, 0.9]] },
      { name: 'lane', points: [[0.4, 0.3], [0.4, 0.9]] },
    ],
  };
  const crossings = Object.fromEntries(ways.map((way, i) => [way, { person: i + 7 }]));
  const counts = {
    zones: { [zone]: { occupancy: 3 }, bench: { occupancy: 1 } },
    lines: { [line]: { crossings }, lane: { crossings: { in: {}, out: {} } } },
  };
  drawCounts(spy, rules, counts, { left: 20, top: 10, width, height: 300 }, 1);
  return tags;
})"""
_OUTSIDE = """() => [...document.querySelectorAll('main *')].filter((node) => {
  if (!node.checkVisibility() || node.closest('svg, .unseen, .yaml, input')) return false;
  const right = node.parentElement.closest('.card')?.getBoundingClientRect().right ?? innerWidth;
  const block = getComputedStyle(node).display !== 'inline';
  const cut = block && node.clientWidth && node.scrollWidth > node.clientWidth + 1;
  return cut || node.getBoundingClientRect().right > right + 0.5;
}).map((node) => `${node.tagName}.${node.className} ${node.textContent}`)"""


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("long")
    with daemon(folder, CONFIG.replace("STATE", str(folder / "state")), metrics="page: true") as running:
        yield running


@pytest.mark.parametrize("width", [800, 360])
def test_names_of_zones_and_lines_cover_neither_each_other_nor_the_edge(visit: Any, width: int) -> None:
    tags = visit().evaluate(_TAGS, [[ZONE, LINE, WAYS], width])
    assert len(tags) == 4
    for n, tag in enumerate(tags):
        x, y, wide, high = tag["box"]
        assert x >= 20, tag
        assert x + wide <= 20 + width, tag
        for other in tags[:n]:
            a, b, w, h = other["box"]
            assert x >= a + w or a >= x + wide or y >= b + h or b >= y + high, (tag, other)
    told = [tag["text"] for tag in tags]
    assert told[0].endswith(": 3 inside")
    assert told[1] == "bench: 1 inside"
    assert told[2].endswith(f": {WAYS[0]} 7 · {WAYS[1]} 8" if width == 800 else "…: 7 · 8")
    assert told[3] == "lane: in 0 · out 0"


@pytest.mark.parametrize("width", [1440, 390])
def test_everything_of_a_camera_is_told_in_full(visit: Any, width: int) -> None:
    page: Page = visit(f"#/{CAMERA}", viewport={"width": width, "height": 900})
    painted(page, ".camera canvas")
    for words in (ZONE, LINE, *WAYS):
        told = page.locator(".counts").get_by_text(words)
        expect(told).to_be_visible()
        box = told.bounding_box()
        assert box is not None
        assert box["width"] > 60
        assert box["x"] + box["width"] <= width
    assert page.evaluate(_OUTSIDE) == []
    for name in ("bench", "lane"):  # a short name and its count stand on one line
        row = page.locator(".counts li").filter(has=page.get_by_text(name, exact=True))
        expect(row.locator("b")).not_to_have_text("–")
        left, right = row.locator(".rule span").bounding_box(), row.locator("b").bounding_box()
        assert left is not None
        assert right is not None
        assert left["y"] == pytest.approx(right["y"], abs=0.6), name
    page.get_by_role("button", name="Edit zones and lines").click()
    expect(page.locator(".shapes").get_by_text(LINE)).to_be_visible()
    assert page.evaluate(_OUTSIDE) == []
    picture = page.locator(".scene").bounding_box()
    words_ = page.locator(".scene .waytext").first.bounding_box()
    assert picture is not None
    assert words_ is not None
    assert picture["x"] <= words_["x"]
    assert words_["x"] + words_["width"] <= picture["x"] + picture["width"]
