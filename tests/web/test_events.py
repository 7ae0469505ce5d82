"""The list of past events in a real browser, over a real journal with a thousand events, snapshots and clips."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from playwright.sync_api import Browser, Page, expect

from streamd.events.record import Media
from tests.events.journals import SECOND, T0, event, until
from tests.web import seeded
from tests.web.browsing import CONTRAST, PATIENCE_MS

HOSTILE = "<img src=x onerror=alert(1)>"
EVENTS = 1000


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return seeded.clips(tmp_path_factory.mktemp("clips"))


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory, films: dict[str, Path]) -> Iterator[seeded.Seeded]:
    folder = tmp_path_factory.mktemp("events")
    with seeded.page(folder) as made:
        seeded.fill(made.journal, EVENTS, seeded.snapshots(folder), [films["h264"], films["av1"]])
        yield made


@pytest.fixture
def empty(tmp_path: Path) -> Iterator[seeded.Seeded]:
    with seeded.page(tmp_path) as made:
        yield made


@pytest.fixture
def look(browser: Browser) -> Iterator[Any]:
    contexts, complaints = [], []
    expect.set_options(timeout=PATIENCE_MS)

    def open_(served: seeded.Seeded, query: str = "", **options: Any) -> Page:
        context = browser.new_context(**{"viewport": {"width": 1440, "height": 900}, "timezone_id": "UTC", **options})
        context.set_default_timeout(PATIENCE_MS)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda m: complaints.append(m.text) if m.type in ("error", "warning") else None)
        page.on("pageerror", lambda e: complaints.append(str(e)))
        page.goto(f"http://127.0.0.1:{served.port}/events.html{query}")
        return page

    yield open_
    for context in contexts:
        context.close()
    assert complaints == []


def truth(served: seeded.Seeded, **query: Any) -> set[str]:
    """Ids of all events that the journal has for these filters."""
    found: set[str] = set()
    before: Any = None
    while True:
        asked = urlencode({**query, "limit": 1000, **({"before": before} if before else {})})
        with urllib.request.urlopen(f"http://127.0.0.1:{served.port}/events?{asked}", timeout=30) as answer:
            body = json.loads(answer.read())
        found |= {row["id"] for row in body["events"]}
        if (before := body["next"]) is None:
            return found


def listed(page: Page, number: int) -> None:
    """Scrolls until everything is there, and compares the number of cards."""
    cards = page.locator(".event")
    more = page.locator("#more")
    until(lambda: page.evaluate("void scrollTo(0, 1e9)") or (cards.count() >= number and more.is_hidden()), 60)
    expect(cards).to_have_count(number)


def test_a_thousand_events_are_listed_as_one_scrolls(look: Any, full: seeded.Seeded) -> None:
    page = look(full)
    cards = page.locator(".event")
    expect(cards.first).to_be_visible()
    assert cards.count() < 200
    listed(page, EVENTS)
    assert page.locator("video").count() == 0
    assert len(set(page.locator(".event button").evaluate_all("all => all.map(each => each.dataset.id)"))) == EVENTS
    # The newest first, under the days on which they were.
    days = page.locator(".day h2").all_inner_texts()
    assert days == ["Friday, January 15, 2027", "Thursday, January 14, 2027"]
    until(lambda: page.locator(".event img").last.evaluate("picture => picture.naturalWidth") == 320)
    expect(page.locator("#status")).to_have_text("1,000 events, 666 with a clip")


def test_filters_by_camera_zone_class_and_time(look: Any, full: seeded.Seeded) -> None:
    page = look(full)
    expect(page.locator(".event").first).to_be_visible()
    page.locator("#stream").select_option("gate")
    page.locator("#label").select_option("person")
    listed(page, len(truth(full, stream="gate", label="person")))
    page.locator("#rule").select_option("driveway")
    wanted = truth(full, stream="gate", label="person", rule="driveway")
    assert 10 < len(wanted) < 200
    listed(page, len(wanted))
    assert {*page.locator(".event button").evaluate_all("all => all.map(each => each.dataset.id)")} == wanted
    # The choice is in the address, also for others.
    again = look(full, page.url.partition("events.html")[2])
    listed(again, len(wanted))
    expect(again.locator("#rule")).to_have_value("driveway")
    page.locator("#clear").click()
    page.locator("#span").select_option("own")
    page.locator("#since").fill("2027-01-15T06:00:00")
    page.locator("#until").fill("2027-01-15T07:00:00")
    page.locator("#until").blur()
    listed(page, len(truth(full, since="2027-01-15T06:00:00Z", until="2027-01-15T07:00:00Z")))
    page.locator("#span").select_option("3600")
    expect(page.locator("#empty")).to_have_text("No events match these filters.")


def test_the_timeline_of_a_few_seconds_has_its_last_event_at_its_end(look: Any, empty: seeded.Seeded) -> None:
    for n, at in enumerate((0, 4, 20)):
        empty.journal.submit(event(f"e/{n}", stream="gate", at_s=at))
    assert empty.journal.flush()
    page = look(empty)
    bars = page.locator("#timeline rect[data-bar]")
    expect(bars).to_have_count(3)
    assert [bars.nth(n).get_attribute("data-bar") for n in range(3)] == ["0", "19", "95"]


def test_the_keyboard_reaches_everything(look: Any, full: seeded.Seeded) -> None:
    page = look(full)
    cards = page.locator(".event button")
    cards.first.focus()
    page.keyboard.press("ArrowRight")
    expect(cards.nth(1)).to_be_focused()
    page.keyboard.press("ArrowDown")
    expect(cards.nth(6)).to_be_focused()  # five in a row
    page.keyboard.press("Enter")
    player = page.locator("#player")
    expect(player).to_be_visible()
    title = player.locator("h2").inner_text()
    page.keyboard.press("ArrowRight")
    expect(player.locator("h2")).not_to_have_text(title)
    page.keyboard.press("Escape")
    expect(player).to_be_hidden()
    expect(cards.nth(7)).to_be_focused()
    time = page.get_by_role("slider", name="Time")
    time.focus()
    page.keyboard.press("Home")
    assert "event" in (time.get_attribute("aria-valuetext") or "")
    page.keyboard.press("Enter")
    focused = page.evaluate("document.activeElement.dataset.id")
    assert int(focused.rpartition("/")[2]) > 0
    assert page.evaluate("document.activeElement.getBoundingClientRect().top") > 50  # not under the header


def open_clip(look: Any, served: seeded.Seeded, film: Path) -> Page:
    """Opens an event that has this clip."""
    served.journal.submit(event("e/1", stream="gate"))
    served.journal.link("e/1", "clip", Media(str(film)))
    assert served.journal.flush()
    page: Page = look(served)
    page.locator(".event button").click()
    return page


@pytest.mark.parametrize("kind", ["h264", "av1", "h264 mkv", "h264 alaw"])
def test_clips_play(look: Any, empty: seeded.Seeded, films: dict[str, Path], kind: str) -> None:
    page = open_clip(look, empty, films[kind])
    video = page.locator("video")
    until(lambda: video.evaluate("v => v.currentTime") > 0.2)
    assert video.evaluate("v => v.videoWidth") > 0
    assert video.evaluate("v => v.error") is None
    until(lambda: video.evaluate("v => v.ended"))
    video.evaluate("v => { v.currentTime = 1.0 }")
    until(lambda: video.evaluate("v => !v.seeking && v.currentTime >= 1"))
    if kind == "h264 alaw":  # QuickTime with G.711, since MP4 cannot hold it
        assert films[kind].suffix == ".mov"
        assert video.evaluate("v => v.webkitAudioDecodedByteCount") > 0
    page.get_by_role("button", name="Close").click()
    expect(page.locator("video")).to_have_count(0)


@pytest.mark.parametrize("kind", ["mpeg4", "msmpeg4 mkv", "mpeg4 alaw", "mpeg4 aac"])
def test_what_the_browser_cannot_play_is_offered_as_a_download(
    look: Any, empty: seeded.Seeded, films: dict[str, Path], kind: str
) -> None:
    """With sound that it knows it would play the sound alone, and no error tells of it."""
    page = open_clip(look, empty, films[kind])
    expect(page.locator(".cannot")).to_contain_text("This browser cannot play the clip.")
    expect(page.locator("video")).to_have_count(0)
    with page.expect_download() as coming:
        page.locator(".cannot a").click()
    assert coming.value.suggested_filename == films[kind].name
    assert Path(coming.value.path()).read_bytes() == films[kind].read_bytes()


def test_what_happens_meanwhile_appears(
    look: Any, empty: seeded.Seeded, films: dict[str, Path], tmp_path: Path
) -> None:
    shots = seeded.snapshots(tmp_path, 1)
    page = look(empty)
    expect(page.locator("#empty")).to_have_text("No events yet.")
    values: dict[str, Any] = {"stream": "gate", "rule": HOSTILE, "label": HOSTILE}
    empty.journal.submit(event("e/1", "begin", type="zone_entered", **values))
    empty.journal.link("e/1", "clip", Media(str(films["h264"]), "pending"))
    card = page.locator(".event")
    expect(card).to_contain_text("Recording…")
    expect(card).to_contain_text("going on")
    expect(card).to_contain_text(HOSTILE)
    expect(page.locator("#rule option")).to_have_text(["all", HOSTILE])
    empty.journal.link("e/1", "snapshot", Media(str(shots[0])))
    empty.journal.link("e/1", "clip", Media(str(films["h264"])))
    empty.journal.submit(event("e/1", "end", at_s=12, type="zone_exited", details={"dwell_s": 12.0}, **values))
    expect(card).to_contain_text("12 s")
    expect(card.locator(".tag")).to_have_text("Clip")
    expect(card.locator("img")).to_be_visible()
    assert card.count() == 1


def test_the_list_stays_where_it_is_while_it_grows(look: Any, empty: seeded.Seeded, tmp_path: Path) -> None:
    """A card that is pressed while events arrive opens, and nothing moves under who has scrolled down."""
    shots = seeded.snapshots(tmp_path, 1)

    def add(begin: int, number: int) -> None:
        for n in range(begin, begin + number):
            empty.journal.submit(event(f"e/{n}", stream="gate", at_s=n))
            empty.journal.link(f"e/{n}", "snapshot", Media(str(shots[0])))
        assert empty.journal.flush()

    add(0, 200)
    page = look(empty)
    page.locator(".event button[data-id='e/150']").scroll_into_view_if_needed()
    page.wait_for_timeout(500)
    pressed = page.locator(".event button[data-id='e/150']")
    before = pressed.bounding_box()
    assert before is not None
    page.mouse.move(before["x"] + 50, before["y"] + 50)
    page.mouse.down()
    add(200, 20)
    expect(page.locator("#status")).to_contain_text("220 events")
    page.wait_for_timeout(500)
    after = pressed.bounding_box()
    assert after is not None
    assert after["y"] == pytest.approx(before["y"], abs=2)
    page.mouse.up()
    expect(page.locator("#player")).to_be_visible()
    page.keyboard.press("Escape")
    expect(pressed).to_be_focused()
    assert page.locator(".event button").first.get_attribute("data-id") == "e/219"
    ids = page.locator(".event button").evaluate_all("all => all.map(each => each.dataset.id)")
    assert ids == [f"e/{n}" for n in range(219, 219 - len(ids), -1)]


def test_a_clip_that_is_written_while_its_event_is_open_can_be_played(
    look: Any, empty: seeded.Seeded, films: dict[str, Path], tmp_path: Path
) -> None:
    empty.journal.submit(event("e/1", stream="gate"))
    empty.journal.link("e/1", "snapshot", Media(str(seeded.snapshots(tmp_path, 1)[0])))
    empty.journal.link("e/1", "clip", Media(str(films["h264"]), "pending"))
    assert empty.journal.flush()
    page = look(empty)
    page.locator(".event button").click()
    player = page.locator("#player")
    expect(player).to_contain_text("clip is being recorded")
    empty.journal.link("e/1", "clip", Media(str(films["h264"])))
    player.get_by_role("button", name="Clip").click()
    until(lambda: page.locator("video").evaluate("v => v.currentTime") > 0.2)
    expect(player).not_to_contain_text("being recorded")


@pytest.mark.parametrize(("width", "scheme"), [(1440, "light"), (390, "dark"), (390, "light"), (1440, "dark")])
def test_all_text_stands_out_and_nothing_is_cut_off(look: Any, full: seeded.Seeded, width: int, scheme: Any) -> None:
    since = T0 // SECOND - 3600
    page = look(full, f"?since={since}", viewport={"width": width, "height": 800}, color_scheme=scheme)
    expect(page.locator(".event").first).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    found = page.evaluate(CONTRAST)
    assert {k: v for k, v in found.items() if "tag" not in k} == {}
    page.locator(".event button:not([disabled])").first.click()
    player = page.locator("#player")
    expect(player).to_be_visible()
    box, shut = player.bounding_box(), page.get_by_role("button", name="Close").bounding_box()
    assert box is not None
    assert shut is not None
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= width
    assert shut["y"] + shut["height"] <= 800
