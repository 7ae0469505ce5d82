"""From the wall to a recorded clip that plays: a daemon that records, and a real browser."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Locator, Page, expect

from tests.behaviour.daemon import Running, daemon, until
from tests.marked import write_marked

CONFIG = """
model: {path: none}
engine: {kind: "null"}
events: {state_dir: state}
streams:
  - id: gate
    url: v.mp4
    loop: true
    zones:
      - name: middle
        anchor: center
        points: [[0.3, 0.3], [0.7, 0.3], [0.7, 0.7], [0.3, 0.7]]
        snapshot: true
        clip: {pre_s: 1, post_s: 4, max_s: 12}
"""
LEAD_S = 2
"""Of a clip, played before the event."""


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """Its object is inside for three seconds at a time: several events share a clip."""
    folder = tmp_path_factory.mktemp("recorded")
    write_marked(folder / "v.mp4", codec="libx264", frames=75, gop=25)
    with daemon(folder, CONFIG, metrics="page: true") as running:
        until(lambda: running.value("streamd_clips_written_total", stream="gate") >= 1, 60, "a clip")
        yield running


def recorded(running: Running) -> list[dict[str, Any]]:
    """Of the first clip, its events with their times in it, the first one first."""
    row = json.loads(running.get("/events?order=oldest&limit=1")[1])["events"][0]
    return list(json.loads(running.get(f"/{row['media']['clip_json']['url']}")[1])["events"])


def plays(page: Page, event: dict[str, Any]) -> Locator:
    """The player's clip, which plays from shortly before the event."""
    video = page.locator("#player video")
    expect(video).to_be_visible()
    begin = max(0.0, event["t"] - LEAD_S)
    page.wait_for_function("begin => document.querySelector('video').currentTime > begin + 0.5", arg=begin)
    assert video.evaluate("v => v.played.start(0)") == pytest.approx(begin, abs=0.2)
    assert video.evaluate("v => [v.videoWidth, v.videoHeight]") == [320, 160]
    assert video.evaluate("v => v.error") is None
    return video


def test_a_recorded_clip_plays_from_its_event(visit: Any, running: Running) -> None:
    first, *_, last = recorded(running)
    assert first["t"] < LEAD_S
    assert last["t"] > LEAD_S + 1
    page = visit()
    page.get_by_role("link", name="gate: Live").click()
    page.get_by_role("link", name="Events").last.click()
    expect(page.locator("#stream")).to_have_value("gate")
    for event in (first, last):
        page.locator(f".event button[data-id='{event['id']}']").click()
        plays(page, event)
        page.get_by_role("button", name="Close").click()
        expect(page.locator("#player")).to_be_hidden()


@pytest.mark.parametrize("phone", [False, True])
def test_by_keyboard_or_by_finger(visit: Any, running: Running, phone: bool) -> None:
    first, second, *_ = recorded(running)
    options = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True} if phone else {}
    page = visit("events.html", **options)
    card = page.locator(f".event button[data-id='{second['id']}']")
    if phone:
        card.tap()
        video = plays(page, second)
        box = video.bounding_box()
        assert box is not None
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= 390
        page.get_by_role("button", name="Older").tap()
    else:
        expect(card).to_be_visible()
        for _ in range(12):
            page.keyboard.press("Tab")
            if page.evaluate("document.activeElement.closest('.event') != null"):
                break
        for _ in range(100):
            if page.evaluate("document.activeElement.dataset.id") == second["id"]:
                break
            page.keyboard.press("ArrowRight")
        expect(card).to_be_focused()
        page.keyboard.press("Enter")
        video = plays(page, second)
        video.focus()
        page.keyboard.press("Space")
        assert video.evaluate("v => v.paused") is True
        page.get_by_role("button", name="Close").focus()
        page.keyboard.press("ArrowRight")
    plays(page, first)
