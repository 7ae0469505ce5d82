"""Tracks, zones and events through the whole daemon, with workers and without, to subscribers and the journal."""

from __future__ import annotations

import os
import signal
import sqlite3
from pathlib import Path

import pytest

from streamd.events.journal import Journal
from streamd.events.place import JOURNAL
from streamd.events.query import Filter
from tests.behaviour.daemon import Subscriber, daemon, until

# The null engine sees one thing, in the middle half of every picture.
MIDDLE = "zones: [{name: middle, anchor: center, points: [[0.3, 0.3], [0.7, 0.3], [0.7, 0.7], [0.3, 0.7]]}]"
CORNER = "zones: [{name: corner, anchor: center, points: [[0, 0], [0.2, 0], [0.2, 0.2], [0, 0.2]]}]"


def config(folder: Path, *streams: str, more: str = "") -> str:
    listed = "".join(f"  - {{kind: synthetic, width: 64, height: 64, fps: 25, {stream}}}\n" for stream in streams)
    return (
        f'model: {{path: none}}\nengine: {{kind: "null"}}\nevents: {{state_dir: state}}\n{more}'
        f"sinks: [{{kind: zmq, bind: 'ipc://{folder}/z'}}, {{kind: jsonl, path: out.jsonl}}]\nstreams:\n{listed}"
    )


def told(subscriber: Subscriber, stream: str) -> list[str]:
    return [e["type"] for e in subscriber.events if e["stream"] == stream]


@pytest.mark.parametrize("more", ["", "workers: 2\n"], ids=["one process", "workers"])
def test_an_object_has_one_track_and_its_zone_one_event(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: str
) -> None:
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(tmp_path))
    with daemon(tmp_path, config(tmp_path, f"id: a, {MIDDLE}", f"id: b, {CORNER}", more=more)) as running:
        subscriber = Subscriber(f"ipc://{tmp_path}/z")
        until(lambda: len(subscriber.frames["a"]) > 30 and len(subscriber.frames["b"]) > 30, 60)
        for stream in ("a", "b"):
            tracks = [d.track for m in subscriber.frames[stream] for d in m.detections]
            assert len({track.id for track in tracks if track}) == 1, "one object, one id"
            assert all(track.confirmed and abs(track.velocity[0]) < 1 for track in tracks if track)
        ids = {s: next(d.track.id for d in subscriber.frames[s][-1].detections if d.track) for s in ("a", "b")}
        assert ids["a"] != ids["b"], "unique in the daemon"
        for stream, zone, inside in (("a", "middle", 1), ("b", "corner", 0)):
            counts = subscriber.frames[stream][-1].counts
            assert isinstance(counts, dict)
            assert counts["zones"][zone]["occupancy"] == inside
        assert running.value("streamd_zone_occupancy", stream="a", zone="middle", label="thing") == 1
        assert running.value("streamd_tracks_active", stream="b") == 1
        until(
            lambda: (
                sum(
                    value
                    for (name, labels), value in running.metrics().items()
                    if name == "streamd_stage_duration_seconds_count" and ("stage", "track") in labels
                )
                > 60
            ),
            10,
        )
        assert running.stop() == 0
        subscriber.close()
    lines = [line for line in (tmp_path / "out.jsonl").read_text().splitlines() if '"event_seq"' in line]
    assert any('"zone_resumed"' in line or '"zone_appeared"' in line for line in lines)
    journal = Journal(tmp_path / "state")
    journal.start()
    assert journal.flush()
    records = journal.find(Filter())
    assert journal.close()
    assert [r.kind for r in records if r.stream == "a"] == ["begin", "end"], "begun once and ended at the stop"
    assert [r.kind for r in records if r.stream == "b"] == []
    assert len({r.id for r in records}) == 1
    begin, end = records
    assert begin.track == end.track == ids["a"]
    assert [e["event_seq"] for e in subscriber.events if e["stream"] == "a"] in ([], [2], [1, 2])
    assert len(lines) == 2


def test_zones_change_between_two_frames(tmp_path: Path) -> None:
    with daemon(tmp_path, config(tmp_path, f"id: a, {CORNER}")) as running:
        subscriber = Subscriber(f"ipc://{tmp_path}/z")
        until(lambda: len(subscriber.frames["a"]) > 10, 60)
        assert told(subscriber, "a") == []
        running.reload(config(tmp_path, f"id: a, {MIDDLE}"))
        until(lambda: told(subscriber, "a"), 20, "the new zone's event")
        running.reload(config(tmp_path, f"id: a, {CORNER}"))
        until(lambda: "zone_rule_changed" in told(subscriber, "a"), 20, "the end of it")
        assert {m.epoch for m in subscriber.frames["a"]} == {0}, "the connection is not concerned"
        running.reload(config(tmp_path, "id: a"), "refused")
        assert "zones: cannot be changed by a reload" in (tmp_path / "log").read_text()
        assert running.stop() == 0
        subscriber.close()


def test_a_killed_worker_s_events_end_and_its_successor_begins_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(tmp_path))
    text = config(tmp_path, f"id: a, {MIDDLE}", f"id: b, {MIDDLE}", more="workers: 2\n")
    with daemon(tmp_path, text) as running:
        subscriber = Subscriber(f"ipc://{tmp_path}/z")
        until(lambda: len(subscriber.frames["a"]) > 75 and len(subscriber.frames["b"]) > 30, 60)
        before = next(d.track.id for d in subscriber.frames["a"][-1].detections if d.track)
        pid = next(e["pid"] for e in running.log() if e["event"] == "worker started" and e["worker"] == 0)
        os.kill(pid, signal.SIGKILL)
        until(lambda: subscriber.frames["a"][-1].epoch == 1, 60, "the successor")
        until(lambda: "a" in {e["stream"] for e in subscriber.events if e["kind"] == "end"}, 20, "the end")
        until(lambda: any(d.track for d in subscriber.frames["a"][-1].detections), 20)
        after = next(d.track.id for d in subscriber.frames["a"][-1].detections if d.track)
        assert before != after
        assert running.stop() == 0
        subscriber.close()
    ends = [e for e in subscriber.events if e["stream"] == "a" and e["kind"] == "end"]
    assert ends[0]["details"]["reason"] == "process_died"
    assert ends[0]["at"] > ends[0]["began_at"] + 0.5, "it was open until the worker's last report"
    seqs = [e["event_seq"] for e in subscriber.events if e["stream"] == "a"]
    assert seqs == sorted(set(seqs))


def test_two_daemons_cannot_share_a_journal(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "state")
    with daemon(tmp_path, config(tmp_path, f"id: a, {MIDDLE}")) as running:
        assert running.process.wait(30) == 2
    assert f"is in use by process {os.getpid()}" in (tmp_path / "log").read_text()
    journal.start()
    assert journal.close()


def counts_of(subscriber: Subscriber) -> tuple[float, int, int]:
    """Since when, how many presences began, and how many ended, as the last message of stream a says."""
    counts = subscriber.frames["a"][-1].counts
    assert isinstance(counts, dict)
    zone = counts["zones"]["middle"]
    return zone["since"], sum(zone["begun"].values()), sum(zone["ended"].values())


@pytest.mark.parametrize("end", ["killed", "stopped"])
def test_counts_in_messages_continue_in_the_next_daemon(tmp_path: Path, end: str) -> None:
    """With cooldown_s, which goes on over the restart: only the first presence has an event, and all are counted."""
    told = []
    for life in range(3):
        with daemon(
            tmp_path, config(tmp_path, f"id: a, {MIDDLE.replace('anchor', 'cooldown_s: 3600, anchor')}")
        ) as running:
            subscriber = Subscriber(f"ipc://{tmp_path}/z")
            until(lambda: counts_of(subscriber)[1] > life if subscriber.frames["a"] else False, 60)  # noqa: B023
            told.append(counts_of(subscriber))
            frames = len(subscriber.frames["a"])
            until(lambda: len(subscriber.frames["a"]) > frames + 10, 20, "long enough for a commit")  # noqa: B023
            if end == "killed":
                running.process.kill()
                running.process.wait()
            else:
                assert running.stop() == 0
            subscriber.close()
    since = told[0][0]
    assert told == [(since, 1, 0), (since, 2, 1), (since, 3, 2)]
    connection = sqlite3.connect(tmp_path / "state" / JOURNAL)
    begun = connection.execute("SELECT COUNT(*) FROM events WHERE kind = 'begin'").fetchone()
    connection.close()
    assert begun == (1,)


def test_counts_in_messages_continue_after_the_death_of_a_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(tmp_path))
    text = config(tmp_path, f"id: a, {MIDDLE}", f"id: b, {MIDDLE}", more="workers: 2\n")
    with daemon(tmp_path, text) as running:
        subscriber = Subscriber(f"ipc://{tmp_path}/z")
        until(lambda: counts_of(subscriber)[1] == 1 if subscriber.frames["a"] else False, 60)
        since = counts_of(subscriber)[0]
        pid = next(e["pid"] for e in running.log() if e["event"] == "worker started" and e["worker"] == 0)
        os.kill(pid, signal.SIGKILL)
        until(lambda: subscriber.frames["a"][-1].epoch == 1 and counts_of(subscriber)[1] == 2, 60)
        assert counts_of(subscriber) == (since, 2, 1)
        assert running.stop() == 0
        subscriber.close()


def test_a_class_that_the_model_does_not_have_is_refused(tmp_path: Path) -> None:
    wrong = MIDDLE.replace("anchor", "classes: [think], anchor")
    with daemon(tmp_path, config(tmp_path, f"id: a, {MIDDLE}")) as running:
        running.reload(config(tmp_path, f"id: a, {wrong}"), "refused")
        log = (tmp_path / "log").read_text()
        assert "streams[0].zones[0].classes[0]: the model has no class think; did you mean thing?" in log
        assert running.stop() == 0
    with daemon(tmp_path, config(tmp_path, f"id: a, {wrong}")) as running:
        assert running.process.wait(30) == 2
        assert "the model has no class think; did you mean thing?" in (tmp_path / "log").read_text()
