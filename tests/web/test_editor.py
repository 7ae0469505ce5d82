"""Zones, lines and counts on the page, and the zone editor by mouse, touch and keyboard, in a real browser."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from playwright.sync_api import Page, expect
from pydantic import TypeAdapter

from streamd.analysis.rules.checks import check_rules
from streamd.analysis.rules.settings import LineSettings, ZoneSettings
from tests.behaviour.daemon import Running, daemon
from tests.web.browsing import CONTRAST, painted

STREAMS = """
streams:
  - id: gate
    kind: synthetic
    fps: 10
    width: 320
    height: 240
    zones:
      - name: middle
        points: [[0.2, 0.2], [0.8, 0.2], [0.8, 0.95], [0.2, 0.95]]
        classes: [person]
        schedule: {timezone: Europe/Berlin, times: [{start: "00:00"}]}
      - {name: corner, points: [[0.02, 0.02], [0.15, 0.02], [0.02, 0.15]], loiter_s: 30}
    lines:
      - {name: door, points: [[0.9, 0.1], [0.9, 0.9]], directions: [in, 'on']}
"""
CONFIG = f"""
model: {{path: none, labels: [person]}}
engine: {{kind: 'null', latency_ms: 2}}
tracking: {{}}
events: {{state_dir: STATE}}
{STREAMS}
  - {{id: yard, kind: synthetic, fps: 10, width: 320, height: 240}}
"""


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("editor")
    with daemon(folder, CONFIG.replace("STATE", str(folder / "state")), metrics="page: true") as running:
        yield running


def rules(page: Page) -> tuple[list[ZoneSettings], list[LineSettings]]:
    """What a configuration makes of the editor's YAML."""
    read = yaml.safe_load(page.locator(".yaml").inner_text()) or {}
    zones = TypeAdapter(list[ZoneSettings]).validate_python(read.get("zones", []))
    lines = TypeAdapter(list[LineSettings]).validate_python(read.get("lines", []))
    assert list(check_rules(zones, lines, ["person"])) == []
    return zones, lines


def editing(visit: Any, path: str, **options: Any) -> Page:
    page: Page = visit(path, **options)
    painted(page, ".camera canvas")
    page.get_by_role("button", name="Edit zones and lines").click()
    expect(page.get_by_role("heading", name="Zones and lines", level=2)).to_be_focused()
    return page


def at(page: Page, x: float, y: float) -> tuple[float, float]:
    """Where a point of the picture is on the screen. The picture is 4:3."""
    box = page.locator(".scene").bounding_box()
    assert box is not None
    scale = min(box["width"] / 4, box["height"] / 3)
    left, top = (box["width"] - 4 * scale) / 2, (box["height"] - 3 * scale) / 2
    return box["x"] + left + x * 4 * scale, box["y"] + top + y * 3 * scale


def close_to(points: Any, expected: Any) -> None:
    assert [v for point in points for v in point] == pytest.approx([v for point in expected for v in point], abs=0.006)


def test_counts_of_zones_and_lines_are_shown(visit: Any) -> None:
    page = visit("#/gate")
    counts = page.get_by_role("region", name="Counts of zones and lines").get_by_role("listitem")
    expect(counts).to_have_count(3)
    expect(counts.nth(0)).to_contain_text("middle1 inside1 in all")
    expect(counts.nth(1)).to_contain_text("corner0 inside0 in all")
    expect(counts.nth(2)).to_contain_text("doorin 0 · on 0")
    page = visit("#/yard")
    expect(page.get_by_text("No zones or lines are configured")).to_be_visible()


def test_the_picture_shows_zones_lines_and_tracks(visit: Any) -> None:
    """Every text that is written into the picture, by a browser that notes it."""
    page = visit()
    page.add_init_script("""
        window.written = new Set();
        const write = CanvasRenderingContext2D.prototype.fillText;
        CanvasRenderingContext2D.prototype.fillText = function (text, ...rest) {
            written.add(text);
            return write.call(this, text, ...rest);
        };
    """)
    page.goto(page.url.split("#")[0] + "#/gate")
    page.reload()
    for text in ("middle: 1 inside", "corner: 0 inside", "door: in 0 · on 0"):
        page.wait_for_function("text => written.has(text)", arg=text)
    # Numbers are unique in the daemon: the first may be the other stream's.
    page.wait_for_function("() => [...written].some(text => /^#[0-9]+ person 90$/.test(text))")


def test_rules_of_a_configuration_come_back_unchanged(visit: Any) -> None:
    page = editing(visit, "#/gate")
    stream = yaml.safe_load(STREAMS)["streams"][0]
    assert rules(page) == (
        [ZoneSettings(**zone) for zone in stream["zones"]],
        [LineSettings(**line) for line in stream["lines"]],
    )


def test_a_zone_and_a_line_by_mouse(visit: Any) -> None:
    page = editing(visit, "#/yard")
    page.get_by_role("button", name="Add zone").click()
    corners = [(0.2, 0.2), (0.6, 0.25), (0.5, 0.7)]
    for corner in corners:
        page.mouse.click(*at(page, *corner))
    page.mouse.click(*at(page, 0.2, 0.2))  # the first corner closes it
    expect(page.get_by_label("Name")).to_be_focused()
    page.keyboard.type("yard")
    page.get_by_role("button", name="Add line").click()
    page.mouse.move(*at(page, 0.8, 0.2))
    page.mouse.down()
    page.mouse.move(*at(page, 0.8, 0.5), steps=4)
    page.mouse.move(*at(page, 0.7, 0.9), steps=4)
    page.mouse.up()
    page.get_by_label("Along the arrow").fill("no")
    zones, lines = rules(page)
    assert [zone.name for zone in zones] == ["yard"]
    close_to(zones[0].points, corners)
    assert [(line.name, line.directions) for line in lines] == [("line-1", ("no", "out"))]
    close_to(lines[0].points, [(0.8, 0.2), (0.7, 0.9)])
    page.get_by_role("button", name="Turn around").click()
    close_to(rules(page)[1][0].points, [(0.7, 0.9), (0.8, 0.2)])

    # A corner, an edge's own point, and the whole are dragged; each can be undone.
    page.get_by_label("Name").focus()
    page.mouse.click(*at(page, 0.42, 0.38))
    expect(page.get_by_label("Name")).to_have_value("yard")  # though the line's name was being edited
    for begin, end in (((0.2, 0.2), (0.1, 0.1)), ((0.35, 0.175), (0.35, 0.05)), ((0.42, 0.4), (0.47, 0.5))):
        page.mouse.move(*at(page, *begin))
        page.mouse.down()
        page.mouse.move(*at(page, *end), steps=5)
        page.mouse.up()
    moved = [(0.15, 0.2), (0.4, 0.15), (0.65, 0.35), (0.55, 0.8)]
    close_to(rules(page)[0][0].points, moved)
    for _ in range(3):
        page.get_by_role("button", name="Undo").click()
    close_to(rules(page)[0][0].points, corners)


def test_by_keyboard_alone(visit: Any) -> None:
    page = editing(visit, "#/yard")
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    expect(page.get_by_role("button", name="Add zone")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator(".scene")).to_be_focused()
    page.keyboard.press("Space")  # in the middle
    for keys in (["Shift+ArrowRight"] * 5, ["Shift+ArrowDown"] * 5):
        for key in keys:
            page.keyboard.press(key)
        page.keyboard.press("Space")
    page.keyboard.press("Enter")
    expect(page.get_by_label("Name")).to_be_focused()
    (zone,) = rules(page)[0]
    close_to(zone.points, [(0.5, 0.5), (0.6, 0.5), (0.6, 0.6)])
    page.locator(".handle").first.focus()
    page.keyboard.press("Shift+ArrowLeft")
    page.keyboard.press("ArrowUp")
    close_to(rules(page)[0][0].points, [(0.48, 0.498), (0.6, 0.5), (0.6, 0.6)])
    expect(page.get_by_role("button", name="zone-1, corner 1 of 3, at 48 %, 50 %")).to_be_focused()
    page.keyboard.press("Delete")
    expect(page.get_by_text("A zone has at least three corners")).to_be_visible()
    page.locator(".add").first.focus()
    page.keyboard.press("Enter")
    assert len(rules(page)[0][0].points) == 4
    page.keyboard.press("Delete")  # the new corner has the focus
    assert len(rules(page)[0][0].points) == 3
    page.locator(".body").focus()
    page.keyboard.press("Delete")
    assert rules(page) == ([], [])
    page.keyboard.press("Control+z")
    assert len(rules(page)[0]) == 1
    page.keyboard.press("Escape")  # leaves the editor, not the camera
    expect(page.get_by_role("button", name="Edit zones and lines")).to_be_focused()
    expect(page.get_by_role("heading", name="yard", level=1)).to_be_visible()


def test_by_touch(visit: Any) -> None:
    phone = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}
    page = editing(visit, "#/yard", **phone)
    page.get_by_role("button", name="Add zone").tap()
    corners = [(0.2, 0.2), (0.8, 0.2), (0.8, 0.8)]
    for corner in corners:
        page.touchscreen.tap(*at(page, *corner))
    page.get_by_role("button", name="Finish").tap()
    close_to(rules(page)[0][0].points, corners)
    assert page.evaluate("document.documentElement.scrollWidth") == 390


def test_what_is_wrong_is_told(visit: Any) -> None:
    page = editing(visit, "#/yard")
    page.get_by_role("button", name="Add zone").click()
    for corner in [(0.2, 0.2), (0.8, 0.8), (0.8, 0.2)]:
        page.mouse.click(*at(page, *corner))
    page.mouse.dblclick(*at(page, 0.2, 0.8))  # sets the last corner
    expect(page.get_by_role("button", name="zone-1, corner 4 of 4, at 20 %, 80 %")).to_be_visible()
    expect(page.get_by_text("Its edges cross each other")).to_be_visible()
    page.get_by_label("Name").fill("a b")
    expect(page.get_by_text("The name has to be")).to_be_visible()


@pytest.mark.parametrize("scheme", ["dark", "light"])
def test_text_stands_out_from_its_ground(visit: Any, scheme: str) -> None:
    page = editing(visit, "#/gate", color_scheme=scheme)
    page.locator(".pick").last.click()
    page.get_by_label("Name").fill("middle")
    expect(page.get_by_text("Another zone or line has this name").first).to_be_visible()
    assert page.evaluate(CONTRAST) == {}


def test_the_yaml_is_copied(visit: Any) -> None:
    page = editing(visit, "#/gate", permissions=["clipboard-read", "clipboard-write"])
    page.get_by_role("button", name="Copy YAML").click()
    expect(page.get_by_text("Copied.")).to_be_visible()
    assert page.evaluate("navigator.clipboard.readText()") == page.locator(".yaml").inner_text()


def test_rules_of_a_reload_are_drawn(visit: Any, running: Running) -> None:
    before = running.config.read_text()
    changed = before.replace("id: yard,", "id: yard, zones: [{name: new, points: [[0, 0], [1, 0], [0.5, 1]]}],")
    assert changed != before
    page = visit("#/yard")
    expect(page.get_by_text("No zones or lines are configured")).to_be_visible()
    running.reload("\n".join(changed.splitlines()[1:]))
    expect(page.get_by_role("region", name="Counts of zones and lines")).to_contain_text("new1 inside")
