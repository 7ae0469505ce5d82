"""Boxes that run what they are told: real daemons, real sockets, the null engine."""

from __future__ import annotations

import json
import signal
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from streamd.errors import ConfigError
from streamd.events.record import OpenEvent
from streamd.fleet.records import Assignment, Handover, Order
from streamd.runtime.control.client import ControlClient, ControlError
from streamd.runtime.control.server import MOST_BYTES, ControlServer
from tests.runtime.control.boxes import ZONE, box, stream, text, until

TWO = text(stream("gate", ZONE) + stream("hall"))


def test_a_stream_moves_with_its_numbers_counters_and_rules_and_connects_before_the_other_leaves(
    tmp_path: Path,
) -> None:
    with box(tmp_path, "a", TWO) as a, box(tmp_path, "b", TWO) as b:
        assert a.ask().streams == {}
        a.tell(gate=Assignment(5), hall=Assignment(6))
        until(lambda: a.seen("gate").published > 10, "the stream runs")
        until(lambda: a.seen("gate").event_seq > 0, "somebody is in the zone")
        report = a.seen("gate")
        assert (report.generation, report.state) == (5, "LIVE")
        assert [o.rule for o in report.open] == ["all"]

        b.tell(gate=Assignment(7, standby=True))
        until(lambda: b.seen("gate").ready, "the standby has pictures")
        assert b.seen("gate").standby
        assert b.told("detections", "gate") == [], "and nobody is told of them"

        a.tell(hall=Assignment(6))
        until(lambda: "gate" in a.ask().partings, "it has left")
        parting = a.ask().partings["gate"]
        handover = parting.handover
        assert parting.generation == 5
        assert "gate" not in a.ask().streams
        assert handover.received == handover.published + sum(handover.dropped.values()) > 10
        assert handover.event_seq >= 2, "the presence has ended"
        assert handover.rules is not None
        b.tell(gate=Assignment(7, handover=handover))
        until(lambda: b.seen("gate").published > handover.published + 10, "it goes on there")

        mine, theirs = a.told("detections", "gate"), b.told("detections", "gate")
        assert {m["generation"] for m in mine} == {5}
        assert {m["generation"] for m in theirs} == {7}
        assert mine[-1]["seq"] < handover.received <= theirs[0]["seq"]
        seqs = [m["seq"] for m in mine + theirs]
        assert seqs == sorted(set(seqs)), "no frame has a number twice"
        before, after = (m["counts"]["zones"]["all"] for m in (mine[-1], theirs[-1]))
        assert after["since"] == before["since"], "the counters of its rules go on"
        now = b.seen("gate")
        assert now.received >= now.published + sum(now.dropped.values())
        assert now.epoch == handover.epoch + 1
        until(lambda: b.seen("gate").event_seq > handover.event_seq, "so does the number of its events")
        assert b.told("state", "gate")[-1]["generation"] == 7
        assert b.ask().published <= now.published - handover.published + 10, "what others published is not its own"

        assert a.settle({"gate": 5}, hall=Assignment(6)).partings == {}
        assert a.seen("hall").state == "LIVE"
        # It comes back to the box that had it.
        b.tell()
        until(lambda: "gate" in b.ask().partings, "it has left again")
        again = b.ask().partings["gate"].handover
        a.tell(hall=Assignment(6), gate=Assignment(9, handover=again))
        until(lambda: a.seen("gate").published > again.published, "it is back")
        assert a.told("detections", "gate")[-1]["seq"] >= again.received


def test_another_generation_of_a_running_stream_ends_the_old_one_first(tmp_path: Path) -> None:
    with box(tmp_path, "a", TWO) as a:
        a.tell(hall=Assignment(5))
        until(lambda: a.seen("hall").published > 3, "it runs")
        a.tell(hall=Assignment(8, handover=Handover(4, 1000, 990, {"node_lost": 10}, 2)))
        until(lambda: "hall" in a.ask().partings and a.seen("hall").published > 990, "it runs again")
        assert a.ask().partings["hall"].generation == 5
        report = a.seen("hall")
        assert (report.generation, report.epoch) == (8, 5)
        assert report.dropped["node_lost"] == 10
        assert next(m["seq"] for m in a.told("detections", "hall") if m["generation"] == 8) == 1000


def test_what_a_lost_box_left_open_is_ended_by_the_next(tmp_path: Path) -> None:
    orphan = OpenEvent("boot-0-7", "zone_entered", "all", "thing", 4, 2, 90, 1_700_000_000_000_000_000, 10**18)
    with box(tmp_path, "b", TWO) as b:
        handover = Handover(2, 100, 100, {}, 0, 41, {"zone/all/entered/thing": 20}, None, [orphan])
        b.tell(gate=Assignment(12, handover=handover))
        until(lambda: b.told("event_seq", "gate"), "the end is told")
        end = b.told("event_seq", "gate")[0]
        assert (end["id"], end["kind"], end["details"]) == ("boot-0-7", "end", {"reason": "node_lost"})
        assert (end["event_seq"], end["generation"]) == (42, 12)
        assert end["began_at"] == 1_700_000_000
        journal = b.daemon.events.journal
        assert journal is not None
        assert end["log_id"] == journal.status().log_id
        assert journal.standing("gate").counters["zone/all/entered/thing"] >= 20


def test_orders_that_cannot_be_carried_out_are_answered(tmp_path: Path) -> None:
    with box(tmp_path, "a", TWO) as a:
        a.tell(nowhere=Assignment(3), hall=Assignment(4))
        until(lambda: a.ask().refused == {"nowhere": "unknown_stream"}, "it says so")
        until(lambda: a.seen("hall").published > 0, "the others run")
        # It is in the next configuration.
        a.file.write_text(text(stream("gate", ZONE) + stream("hall") + stream("nowhere")))
        a.client.reload()
        until(lambda: a.seen("nowhere").published, "it runs")
        assert a.ask().revision == "r2"
        a.file.write_text(text(stream("gate", ZONE) + stream("hall")).replace("none", "other"))
        with pytest.raises(ControlError, match=r"config: model\.path: cannot be changed"):
            a.client.reload()
        with pytest.raises(ControlError, match="bad_order: this is box a, and the order is for box b"):
            a.client.exchange(Order(99, "b", 0, {}))
        old = a.client.exchange(Order(1, "a", 0, {}))
        assert "hall" in old.streams, "an old order changes nothing"


def test_the_socket_is_the_users_own_and_bounded(tmp_path: Path) -> None:
    with box(tmp_path, "a", TWO) as a:
        assert stat.S_IMODE(a.path.stat().st_mode) == 0o600
        with pytest.raises(ConfigError, match="another daemon listens there"):
            ControlServer(a.path, a.station.exchange, lambda: None, lambda: None)
        loose = tmp_path / "loose"
        loose.mkdir()
        loose.chmod(0o777)
        with pytest.raises(ConfigError, match="can be written by others"):
            ControlServer(loose / "c", a.station.exchange, lambda: None, lambda: None)

        with socket.socket(socket.AF_UNIX) as raw:
            raw.connect(str(a.path))
            file = raw.makefile("rwb")

            def ask(line: bytes) -> str:
                file.write(line + b"\n")
                file.flush()
                answer = json.loads(file.readline())
                return str(answer["error"]["code"])

            assert ask(b"nonsense") == "bad_request"
            assert ask(b'{"op": "dance"}') == "bad_request"
            assert ask(b'{"op": "exchange", "order": {"number": "x"}}') == "bad_request"
            assert ask(b"\xff") == "bad_request"
            raw.sendall(b"x" * (MOST_BYTES + 1))
            assert json.loads(file.readline())["error"]["code"] == "too_large"
        clients = [ControlClient(a.path) for _ in range(3)]
        with pytest.raises(OSError):  # noqa: PT011 - whichever it is
            ControlClient(a.path).exchange(None)
        for client in clients:
            client.close()
        assert a.ask().order == 0, "nobody else suffers"
        a.client.stop()
        a.thread.join(60)
        assert a.code == 0


def test_a_box_goes_on_without_anybody_and_without_streams(tmp_path: Path) -> None:
    short = text(stream("clip", "count: 5") + stream("hall"))
    with box(tmp_path, "a", short) as a:
        a.tell(clip=Assignment(1))
        until(lambda: a.seen("clip").state == "ENDED", "the input ends")
        a.tell(clip=Assignment(1), hall=Assignment(2))
        a.client.close()
        until(lambda: len(a.told("detections", "hall")) > 10, "it publishes")
        a.client = ControlClient(a.path)
        report = a.ask()
        assert report.streams["clip"].received == 5
        assert report.order == a.number
        assert a.daemon.ready()[0]


def test_the_daemon_of_a_box_is_a_process_of_its_own(tmp_path: Path) -> None:
    file, path = tmp_path / "fleet.yaml", tmp_path / "run" / "control"
    file.write_text(text(stream("'${STREAMD_BOX}'")).replace("listen: null", "listen: 127.0.0.1:1"))
    command = (
        *(sys.executable, "-m", "streamd.runtime.control", file, "--socket", path, "--box", "b7"),
        *("--state-dir", tmp_path / "state", "--base", tmp_path),
    )
    with (tmp_path / "log").open("w") as log, subprocess.Popen(list(map(str, command)), stderr=log) as process:
        try:
            until(path.exists, "it listens")
            client = ControlClient(path, 20.0)
            client.exchange(Order(1, "b7", 3, {"b7": Assignment(3)}))
            until(lambda: "b7" in client.exchange(None).streams and client.exchange(None).streams["b7"].published, "on")
            report = client.exchange(None)
            assert report.pid == process.pid
            assert report.metrics_port
            assert len(report.revision) == 64
            client.close()
            process.send_signal(signal.SIGHUP)  # is for other daemons
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0
            assert not path.exists()
        finally:
            process.kill()
    file.write_text("workers: 2\n" + text(stream("a")))
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "workers: a box of a fleet is one process" in done.stderr
