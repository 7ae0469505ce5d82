from __future__ import annotations

import json

from streamd.events.record import Media, Record, envelope, rfc3339
from tests.events.journals import T0

RECORD = Record(
    position=9, log_id="f00d", event_seq=7, began_ns=T0, committed_ns=T0 + 30_000_000, events_lost=2,
    counters={"gate/in": 4}, id="boot/1/5", stream="yard", kind="end", type="line_crossed", rule="gate",
    label="person", track="boot/1/3", epoch=1, seq=88, at_ns=T0 + 1_500_000_000, details={"direction": "in"},
    media={"clip": Media("/m/c.mp4", "pending"), "snapshot": Media("/m/s.jpg")},
)  # fmt: skip


def test_the_envelope_is_a_cloud_event() -> None:
    """The required attributes of CloudEvents 1.0, and an id that does not depend on how often it is made."""
    made = envelope(RECORD, "front gate")
    assert made == envelope(RECORD, "front gate")
    assert {k: v for k, v in made.items() if k != "data"} == {
        "specversion": "1.0",
        "id": "f00d/yard/7",
        "source": "/streamd/front%20gate",
        "type": "streamd.event.end",
        "subject": "yard",
        "time": "2027-01-15T08:00:01.500000Z",
        "datacontenttype": "application/json",
    }
    assert json.loads(json.dumps(made))["data"] == {
        "schema": 1,
        "log_id": "f00d",
        "event_seq": 7,
        "events_lost": 2,
        "id": "boot/1/5",
        "stream": "yard",
        "kind": "end",
        "type": "line_crossed",
        "rule": "gate",
        "label": "person",
        "track": "boot/1/3",
        "epoch": 1,
        "seq": 88,
        "at": 1_800_000_001.5,
        "began_at": 1_800_000_000.0,
        "committed_at": 1_800_000_000.03,
        "details": {"direction": "in"},
        "counters": {"gate/in": 4},
        "media": {
            "clip": {"path": "/m/c.mp4", "state": "pending", "reason": ""},
            "snapshot": {"path": "/m/s.jpg", "state": "written", "reason": ""},
        },
    }


def test_only_what_is_written_is_a_path() -> None:
    assert RECORD.clip is None
    assert RECORD.snapshot == "/m/s.jpg"


def test_times_before_the_epoch_are_times() -> None:
    """A machine without a clock begins somewhere; a date must not fail for it."""
    assert rfc3339(0) == "1970-01-01T00:00:00.000000Z"
    assert rfc3339(-1_500_000_000) == "1969-12-31T23:59:58.500000Z"
