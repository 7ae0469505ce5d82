"""The page in a real browser: Chromium from the distribution, driven by Playwright, against a daemon of its own."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Route, expect

from tests.behaviour.daemon import Running, daemon
from tests.clips import write_clip
from tests.runtime.test_glance_daemon import FRAMES, yard
from tests.web.browsing import CONTRAST, PATIENCE_MS, painted

HOSTILE = "<img src=x onerror=alert(1)>"
CONFIG = f"""
model: {{path: none, labels: ['{HOSTILE}']}}
engine: {{kind: 'null', latency_ms: 2}}
streams:
  - {{id: gate, kind: synthetic, fps: 20, width: 320, height: 240}}
  - {{id: yard, kind: synthetic, fps: 10, width: 640, height: 360}}
  - {{id: dock, url: 'rtsp://admin:hunter2secret@127.0.0.1:9/hiddenpath', reconnect: {{initial_s: 3, max_s: 3}}}}
  - {{id: lost, url: /nonexistent/hidden.mp4}}
"""


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("page")
    with daemon(folder, CONFIG, metrics="page: true") as running:
        yield running


def test_the_wall_shows_every_camera_with_picture_and_numbers(visit: Any) -> None:
    page = visit()
    expect(page.locator(".tile")).to_have_count(4)
    expect(page.get_by_role("link", name="gate: Live")).to_be_visible()
    painted(page, ".tile[data-stream=gate] canvas")
    expect(page.locator(".tile[data-stream=gate] .numbers b").first).not_to_have_text("–")
    rate = float(page.locator(".tile[data-stream=gate] .numbers b").first.inner_text())
    assert 5 < rate < 40
    expect(page.locator(".tile[data-stream=gate] .spark path")).to_have_attribute("d", re.compile("L"))
    expect(page.locator("#totals .live b")).to_have_text("2")
    expect(page.locator("#totals .down b")).to_have_text("2")
    expect(page.locator("#totals .degraded")).to_be_hidden()
    order = page.locator(".tile").evaluate_all("tiles => tiles.map(tile => tile.dataset.stream)")
    assert order == ["dock", "lost", "gate", "yard"]  # what is down comes first


def test_a_camera_that_is_down_says_why_and_nothing_more(visit: Any) -> None:
    page = visit()
    expect(page.get_by_role("link", name="dock: Down, Connection refused")).to_be_visible()
    expect(page.get_by_role("link", name="lost: Failed, Not found")).to_be_visible()
    page.get_by_role("button", name="Problems 2").click()
    expect(page.locator(".tile:visible")).to_have_count(2)
    page.get_by_role("link", name="dock").click()
    expect(page.get_by_text("nothing listens at that address", exact=False)).to_be_visible()
    text = page.content() + page.evaluate("fetch('state').then(r => r.text())")
    for secret in ("hunter2secret", "admin", "127.0.0.1:9", "hiddenpath", "hidden.mp4"):
        assert secret not in text


def test_a_camera_s_own_page(visit: Any) -> None:
    page = visit("#/gate")
    expect(page.get_by_role("heading", name="gate", level=1)).to_be_visible()
    painted(page, ".camera canvas")
    expect(page.get_by_role("img", name=f"in the picture: 1 {HOSTILE}")).to_be_visible()
    expect(page.locator(".labels")).to_have_text(f"1 {HOSTILE}")  # text, not an element
    assert page.locator(".labels img").count() == 0
    stages = page.locator(".stages li")
    expect(stages).to_have_count(6)
    expect(stages.last.locator("b")).not_to_have_text("–")
    values = [float(stages.nth(i).locator("b").inner_text()) for i in range(6)]
    assert sum(values[:5]) == pytest.approx(values[5], abs=2)
    expect(page.locator(".quantiles b").first).not_to_have_text("–")
    expect(page.locator(".facts").first).to_contain_text("Published")


def test_an_unknown_camera_is_told(visit: Any) -> None:
    page = visit("#/nobody")
    expect(page.get_by_text("There is no camera with this name")).to_be_visible()
    expect(page.locator(".columns")).to_be_hidden()
    expect(page.locator(".rate")).to_be_hidden()


def test_by_keyboard_alone(visit: Any) -> None:
    page = visit()
    expect(page.locator(".tile")).to_have_count(4)
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the cameras")).to_be_focused()
    for _ in range(30):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.closest('.tile')?.dataset.stream") == "gate":
            break
    assert page.evaluate("getComputedStyle(document.activeElement.closest('.tile')).outlineStyle") == "solid"
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="gate", level=1)).to_be_focused()
    page.keyboard.press("Escape")
    expect(page.locator(".tile")).to_have_count(4)
    expect(page.locator(".tile[data-stream=gate] a")).to_be_focused()


def test_from_camera_to_camera(visit: Any) -> None:
    page = visit("#/gate")
    page.get_by_role("link", name="Next camera: lost").click()
    expect(page.get_by_role("heading", name="lost", level=1)).to_be_focused()
    page.keyboard.press("ArrowRight")
    expect(page.get_by_role("heading", name="yard", level=1)).to_be_focused()
    page.keyboard.press("ArrowRight")  # it is the last
    expect(page.get_by_role("link", name="Next camera: none")).to_have_attribute("aria-disabled", "true")
    page.keyboard.press("ArrowLeft")
    expect(page.get_by_role("heading", name="lost", level=1)).to_be_focused()


def test_the_title_names_what_is_down(visit: Any) -> None:
    page = visit()
    expect(page).to_have_title("dock, lost down · streamd")
    page.get_by_role("link", name="gate: Live").click()
    expect(page).to_have_title("dock, lost down · gate · streamd")


def test_states_and_curves_in_words_and_paths(visit: Any) -> None:
    page = visit()
    kinds = page.evaluate("""async () => {
        const { condition } = await import('./dom.js');
        const states = [['ENDED', 'eof'], ['ENDED', ''], ['LIVE', ''], ['BACKOFF', 'refused']];
        return states.map(([state, reason]) => condition({ state, reason, since: 100, last_frame: 100 }, 101).word);
    }""")
    assert kinds == ["Ended", "Stopped", "Live", "Down"]  # what a drain stops has not come to its end
    rates = page.evaluate("""async () => {
        const { History } = await import('./history.js');
        const history = new History();
        const stream = published => ({ stream: 'a', published, dropped: {}, latency: { buckets: [] } });
        const told = [[100, 0], [100, 0], [101, 20], [101, 20]].map(([now, published]) => {
            history.add({ boot_id: 'x', bounds: [], now, streams: [stream(published)] });
            return history.fps('a');
        });
        return told;
    }""")
    assert rates == [None, None, 20, 20]  # the daemon gives the same answer to all who ask at about the same time
    curves = page.evaluate("""async () => {
        const { path } = await import('./history.js');
        const series = n => Array.from({ length: n }, (_, i) => [n - 1 - i, 0.5]);
        const gap = [[3, 1], [2, null], [1, 0], [0, 1]];
        return [path(series(2), 1, 60, 10), path(series(5), 1, 60, 10, 4), path(gap, 1, 60, 10)];
    }""")
    assert curves == ["", "M0.0 5.0L15.0 5.0L30.0 5.0L45.0 5.0L60.0 5.0", "M57.0 0.0M59.0 10.0L60.0 0.0"]


def test_a_drain_is_not_the_end_of_the_cameras(visit: Any) -> None:
    page = visit()
    expect(page.get_by_role("link", name="gate: Live")).to_be_visible()

    def stopped(route: Route) -> None:
        state = route.fetch().json()
        for stream in state["streams"]:
            stream.update(state="ENDED", reason="", detail="stopped", retry_in_s=None)
        route.fulfill(json=state)

    page.route("**/state", stopped)
    expect(page.get_by_role("alert")).to_have_text("streamd is shutting down.")
    expect(page.get_by_role("link", name="gate: Stopped")).to_be_visible()
    page.unroute("**/state")
    expect(page.get_by_role("alert")).to_be_hidden()


def test_the_scale_of_latencies_fits_each_of_them(visit: Any) -> None:
    """Means between 9.5 and 10 of any power of ten once had no scale, and so no curve."""
    page = visit()
    frames = itertools.count(1)

    def slow(route: Route) -> None:
        state = route.fetch().json()
        state["now"] = n = next(frames)
        for stream in state["streams"]:
            stream["latency"] = {"sum": n * 0.0098, "buckets": [n] * (len(state["bounds"]) + 1)}
        route.fulfill(json=state)

    page.route("**/state", slow)
    page.goto(page.url.split("#")[0] + "#/gate")
    page.reload()
    expect(page.locator(".chart .mean")).to_have_attribute("d", re.compile(r"^M[\d.]+ 71.4L[\d.]+ 71.4"))
    expect(page.locator(".scale span").first).to_have_text("20 ms")


def test_what_the_network_looks_at_is_told(visit: Any) -> None:
    page = visit("#/gate")
    frames = page.locator(".camera .card").filter(has_text="Captured")
    expect(frames).to_contain_text("Published")
    expect(frames).not_to_contain_text("Looked at")  # the network looks at every frame
    times = itertools.count(1)

    def gated(route: Route) -> None:
        state = route.fetch().json()
        state["now"] = n = next(times)
        for stream in state["streams"]:
            stream["looked"] = {"motion": 2 * n, "learning": 100}
            stream["glanced"] = {"still": 5 * n, "followed": n}
        route.fulfill(json=state)

    page.route("**/state", gated)
    page.reload()
    expect(frames).to_contain_text("Looked at25 % in the last minute")
    expect(frames).to_contain_text("In the last 5 snothing moves: 63 %, something moves: 25 %")


def test_the_size_of_tiles_can_be_chosen_and_is_kept(visit: Any) -> None:
    page = visit()
    tile = page.locator(".tile[data-stream=gate]")
    expect(tile).to_be_visible()
    auto = tile.bounding_box()["width"]
    page.get_by_role("button", name="Tiles: auto").click()
    expect(page.get_by_role("button", name="Tiles: small")).to_be_visible()
    assert tile.bounding_box()["width"] < auto / 2
    page.reload()
    expect(page.get_by_role("button", name="Tiles: small")).to_be_visible()
    assert tile.bounding_box()["width"] < auto / 2


def test_the_picture_fills_the_screen_and_comes_back(visit: Any) -> None:
    page = visit("#/gate")
    painted(page, ".camera canvas")
    page.keyboard.press("f")
    page.wait_for_function("document.fullscreenElement?.classList.contains('picture')")
    page.get_by_role("button", name="Full screen").click()
    page.wait_for_function("!document.fullscreenElement")


def test_what_a_screen_reader_meets(visit: Any) -> None:
    page = visit()
    expect(page.get_by_role("link", name="gate: Live")).to_be_visible()
    for role in ("banner", "main", "contentinfo"):
        expect(page.get_by_role(role)).to_have_count(1)
    expect(page.get_by_role("heading", name="Cameras", level=1)).to_have_count(1)
    expect(page.get_by_role("list").filter(has=page.get_by_role("link", name="gate"))).to_have_count(1)
    expect(page.get_by_role("button", name="All 4")).to_have_attribute("aria-pressed", "true")
    expect(page.get_by_role("status")).to_have_count(1)
    assert page.locator("html").get_attribute("lang") == "en"


@pytest.mark.parametrize("scheme", ["dark", "light"])
@pytest.mark.parametrize("path", ["", "#/gate", "#/dock"])
def test_text_stands_out_from_its_ground(visit: Any, scheme: str, path: str) -> None:
    page = visit(path, color_scheme=scheme)
    expect(page.locator("#totals .live b")).to_have_text("2")
    expect(page.locator(".pill").first).not_to_be_empty()
    assert page.evaluate(CONTRAST) == {}


@pytest.mark.parametrize("width", [360, 390])
def test_on_a_phone_a_degraded_camera_does_not_move_the_page(visit: Any, width: int) -> None:
    page = visit("", viewport={"width": width, "height": 740}, has_touch=True)
    page.wait_for_selector(".tile")
    heights = page.evaluate("""() => {
        const totals = document.getElementById("totals"), of = (key) => totals.querySelector(`.${key} b`);
        const fill = (values) => Object.entries(values).forEach(([key, text]) => { of(key).textContent = text; });
        fill({ live: "27", down: "1", fps: "23.3", latency: "901" });
        totals.querySelector(".degraded").hidden = true;
        const before = totals.clientHeight;
        totals.querySelector(".degraded").hidden = false;
        fill({ degraded: "7" });
        return [before, totals.clientHeight];
    }""")
    assert heights[0] == heights[1]


@pytest.mark.parametrize("path", ["", "#/gate", "#/dock"])
def test_a_phone_needs_no_sideways_scrolling(visit: Any, path: str) -> None:
    page = visit(path, viewport={"width": 360, "height": 740}, device_scale_factor=2, has_touch=True)
    expect(page.locator("#totals .live b")).to_have_text("2")
    expect(page.locator(".pill").first).not_to_be_empty()
    assert page.evaluate("document.documentElement.scrollWidth") == 360


def test_the_theme_can_be_chosen_and_is_kept(visit: Any) -> None:
    page = visit(color_scheme="dark")
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
    button = page.get_by_role("button", name="Theme: auto")
    button.click()
    page.get_by_role("button", name="Theme: dark").click()
    expect(page.get_by_role("button", name="Theme: light")).to_be_visible()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != dark
    page.reload()
    expect(page.get_by_role("button", name="Theme: light")).to_be_visible()


def test_only_what_is_in_sight_is_asked_for_and_nothing_once_nobody_looks(visit: Any) -> None:
    asked: list[str] = []
    page = visit(viewport={"width": 360, "height": 400}, reduced_motion="reduce")
    page.on("request", lambda r: asked.append(r.url) if "/pictures" in r.url else None)
    page.reload()
    expect(page.locator(".tile")).to_have_count(4)
    page.wait_for_timeout(1000)
    assert "fps=0.5" in asked[-1]  # motion is reduced
    assert "yard" not in asked[-1]  # below the fold
    page.locator(".tile[data-stream=yard]").scroll_into_view_if_needed()
    with page.expect_request(lambda r: "/pictures" in r.url and "yard" in r.url):
        pass


_SHAPES = """async (shapes) => {
  const { Shot } = await import("/pictures.js");
  const canvas = document.createElement("canvas");
  canvas.style = "position: fixed; width: 200px; height: 200px";
  document.body.append(canvas);
  const boxes = [[20, 20, 180, 180, 0.9, "person"]];
  new Shot(canvas).draw({ width: 200, height: 200, boxes, shapes: shapes && [shapes] }, null);
  await new Promise((done) => requestAnimationFrame(done));
  const pen = canvas.getContext("2d");
  const density = canvas.width / 200;
  const color = (x, y) => [...pen.getImageData(x * density, y * density, 1, 1).data].slice(0, 3).join();
  const points = [[100, 20], [60, 60], [100, 100], [180, 150], [30, 160], [5, 195]].map(([x, y]) => color(x, y));
  canvas.remove();
  return points;
}"""


def test_keypoints_outlines_and_rotated_boxes_are_drawn(visit: Any) -> None:
    """Compared with what is drawn of the box alone: at its upper side, its left upper part, middle, right side."""
    page = visit()
    upper, left, middle, right, low, bare = page.evaluate(_SHAPES, None)
    assert left == middle == low == bare != right
    pose = [[60, 60, 0.9], [100, 100, 0.9], [30, 160, 0.2], *[[0, 0, 0]] * 14]
    got = page.evaluate(_SHAPES, {"keypoints": pose})
    assert (got[1] != left, got[2] != middle, got[4] == low, got[3] == right) == (True, True, True, True)
    got = page.evaluate(_SHAPES, {"oriented": [[100, 20], [180, 100], [100, 180], [20, 100]]})
    assert (got[1] != left, got[2] == middle, got[3] != right) == (True, True, True)
    got = page.evaluate(_SHAPES, {"polygon": [[50, 50], [150, 50], [150, 150], [50, 150]]})
    assert (got[1] != left, got[2] != middle, got[4] == low, got[0] == upper) == (True, True, True, True)


_HEAT = """async () => {
  const { drawHeat } = await import('./overlay.js');
  const canvas = Object.assign(document.createElement('canvas'), { width: 200, height: 100 });
  const pen = canvas.getContext('2d');
  pen.imageSmoothingEnabled = false;
  const cells = btoa(String.fromCharCode(0, 255, 32, 0));
  drawHeat(pen, { rows: 2, columns: 2, cells }, { left: 0, top: 0, width: 200, height: 100 });
  return [[50, 25], [150, 25], [50, 75]].map(([x, y]) => [...pen.getImageData(x, y, 1, 1).data]);
}"""


def test_motion_is_drawn_from_blue_to_yellow(visit: Any) -> None:
    none, much, little = visit().evaluate(_HEAT)
    assert none[3] == 0
    assert much[0] > 240
    assert much[1] > 240
    assert much[2] < 15
    assert little[2] > little[0] > little[1]
    assert much[3] > little[3] > 0


def test_where_something_moves_is_shown_on_demand(tmp_path: Path, browser: Browser) -> None:
    clip = write_clip(tmp_path / "yard.mp4", frames=FRAMES, size=(320, 180), gop=50, draw=yard)
    config = (
        "model: {path: none}\nengine: {kind: 'null'}\nstreams:\n"
        f"  - {{id: yard, url: {clip}, loop: true, start_s: 10, look: {{when: motion}}}}\n"
        "  - {id: gate, kind: synthetic}\n"
    )
    with daemon(tmp_path, config, metrics="page: true") as running:
        page = browser.new_page()
        page.set_default_timeout(PATIENCE_MS)
        page.goto(f"http://127.0.0.1:{running.port}/#/yard")
        button = page.get_by_role("button", name="Motion")
        expect(button).to_have_attribute("aria-pressed", "false")
        button.click()
        expect(button).to_have_attribute("aria-pressed", "true")
        painted(page, ".camera canvas")
        page.goto(f"http://127.0.0.1:{running.port}/#/gate")
        painted(page, ".camera canvas")
        expect(button).to_be_hidden()  # the network looks at every frame
        page.close()


def test_a_daemon_that_is_gone_is_told_and_found_again(tmp_path: Path, browser: Browser) -> None:
    config = "model: {path: none}\nengine: {kind: 'null'}\nstreams: [{id: a, kind: synthetic}]\n"
    with daemon(tmp_path, config, metrics="page: true") as first:
        port = first.port
        context = browser.new_context()
        page = context.new_page()
        page.goto(f"http://127.0.0.1:{port}/")
        expect(page.get_by_role("link", name="a: Live")).to_be_visible(timeout=PATIENCE_MS)
        box, view = page.locator(".tile .shot").bounding_box(), page.viewport_size
        assert box is not None
        assert view is not None
        assert box["width"] > 0.9 * view["width"]  # a single camera fills the wall
        assert box["height"] < 0.8 * view["height"]
        first.stop()
        expect(page.get_by_role("alert")).to_contain_text("No response from streamd", timeout=PATIENCE_MS)
    with daemon(tmp_path, config, metrics="page: true", port=port):
        expect(page.get_by_role("alert")).to_be_hidden(timeout=PATIENCE_MS)
        expect(page.get_by_role("link", name="a: Live")).to_be_visible(timeout=PATIENCE_MS)
        painted(page, "canvas")
    context.close()


def test_overload_is_told_first_and_nothing_is_clipped(tmp_path: Path, browser: Browser) -> None:
    clip = write_clip(tmp_path / "clip.mp4", frames=50)
    busy = "\n".join(f"  - {{id: cam{i:02}, kind: synthetic, fps: 10, max_age_ms: 200}}" for i in range(13))
    config = f"""
model: {{path: none}}
engine: {{kind: 'null', latency_ms: 300}}
batch: {{max: 1}}
streams:
{busy}
  - {{id: slow, url: '{clip}', loop: true, max_fps: 2, priority: 5}}
"""
    with daemon(tmp_path, config, metrics="page: true") as running:
        context = browser.new_context(viewport={"width": 1440, "height": 900})
        context.set_default_timeout(60_000)
        page = context.new_page()
        page.goto(f"http://127.0.0.1:{running.port}/")
        expect(page.get_by_role("link", name="cam00: Degraded, Overloaded")).to_be_visible(timeout=60_000)
        expect(page.locator("#totals .degraded b")).to_have_text("13", timeout=60_000)
        expect(page.get_by_role("button", name="Problems 13")).to_be_visible()
        assert page.locator(".tile").last.get_attribute("data-stream") == "slow"  # degraded ones come first
        for width in (1440, 1000, 390):
            page.set_viewport_size({"width": width, "height": 900})
            drops = page.locator(".tile[data-stream=cam00] .drops")
            expect(drops).to_be_visible()
            inside = "node => node.getBoundingClientRect().right <= node.closest('.tile').getBoundingClientRect().right"
            assert drops.evaluate(inside), width
        page.goto(f"http://127.0.0.1:{running.port}/#/slow")
        expect(page.locator(".rate")).to_contain_text("of 2 (max_fps)")
        health = json.loads(running.get("/healthz")[1])
        assert health["ok"]
        assert health["degraded"]["cam00"] == "overload"
        context.close()


def test_a_camera_leads_to_its_events(visit: Any) -> None:
    page = visit("#/gate")
    page.locator(".picture").get_by_role("link", name="Events").click()
    expect(page.locator("#stream")).to_have_value("gate")
    expect(page.locator("#empty")).to_have_text("No events match these filters.")


def test_diagnostics_show_log_and_configuration(visit: Any) -> None:
    page = visit()
    page.get_by_role("link", name="Diagnostics").click()
    log = page.locator("#log li")
    lost = log.filter(has_text="stream=lost").first
    expect(lost).to_be_visible()
    assert "hunter2secret" not in page.content()
    expect(page.locator("#config")).to_contain_text("id: gate")
    page.locator("#find").fill("stream=lost")
    expect(log.filter(has_text="stream=dock")).to_have_count(0)
    expect(lost).to_be_visible()
    page.locator("#find").fill("no such words")
    expect(page.locator("#log")).to_have_text("No line matches.")
    assert page.evaluate(CONTRAST) == {}
    page.emulate_media(color_scheme="light")
    assert page.evaluate(CONTRAST) == {}


def test_the_log_follows_its_newest_line_on_a_narrow_screen(visit: Any) -> None:
    page = visit(viewport={"width": 390, "height": 400})

    def logged(route: Route) -> None:
        """Twenty long lines at first, then one at a time."""
        answer = route.fetch().json()
        after = int(route.request.url.partition("after=")[2])
        first, end = (1, 21) if after == 0 else (after + 1, after + 2)
        answer["lines"] = [{"event": f"line {n}", "level": "info", "path": "/media/" * 30} for n in range(first, end)]
        route.fulfill(json=answer | {"next": end - 1})

    page.route("**/log?*", logged)
    page.get_by_role("link", name="Diagnostics").click()
    log = page.locator("#log")
    log.scroll_into_view_if_needed()
    for n in (20, 21, 22):
        expect(log.locator("li").last).to_contain_text(f"line {n}")
        page.wait_for_timeout(300)
        assert log.evaluate("log => log.scrollHeight - log.scrollTop - log.clientHeight") <= 2
    log.evaluate("log => log.scrollTop = 10")
    expect(log.locator("li").last).to_contain_text("line 24")
    assert log.evaluate("log => log.scrollTop") == 10
