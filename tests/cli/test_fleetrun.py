"""What `streamd fleet status` prints, and what the commands say without Ray or a cluster."""

from __future__ import annotations

import re
import sys
import time
from pathlib import Path

import pytest

from streamd.cli import main
from streamd.cli.fleetrun import in_words, settled, show
from streamd.errors import ConfigError
from streamd.fleet.records import Account, FleetBox, FleetStatus, FleetStream
from streamd.workers.fleet.cluster import address_file, only_one
from tests.conftest import ROOT
from tests.sinks.brokers import free_port


def box(name: str, state: str = "UP", reason: str = "") -> FleetBox:
    return FleetBox(name, "a-node-with-a-long-name", state, reason, 12, 1800.0, 2000.0, True, 0.2, None, "boot")


def stream(name: str, state: str = "RUNNING", reason: str = "", where: str | None = "box-1") -> FleetStream:
    return FleetStream(name, where, 7, state, reason, None, Account())


def status(boxes: list[FleetBox], streams: list[FleetStream], lost: list[str] | None = None) -> FleetStatus:
    return FleetStatus(boxes, streams, {}, 0.0, {"box-1": lost or []}, False)


def test_a_status_fits_a_terminal_and_names_what_needs_attention(capsys: pytest.CaptureFixture[str]) -> None:
    many = [stream(f"cam-{i:02}", "WAITING", "no_room", None) for i in range(20)]
    show(status([box("b" * 64), box("box-1", "DRAINING", "no_room")], [stream("gate"), *many], ["gate", "hall"]))
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 80
    for text in ("21 streams: 1 running, 20 waiting", "no_room", "cam-11", "and 8 more", "DRAINING", "1,800 of 2,000"):
        assert text in shown
    assert "cam-12" not in shown
    assert "Losing box-1 would leave 2 streams without a box." in shown
    show(status([box("box-1")], [stream("gate")]))
    assert "(N+1)" in capsys.readouterr().out


def test_what_happens_is_told_in_words() -> None:
    told = [
        ({"kind": "box_joined", "box": "box-1", "detail": "edge-3"}, "box-1 joined on node edge-3"),
        ({"kind": "box_lost", "box": "box-1", "detail": "3 streams"}, "box-1 was lost with 3 streams"),
        ({"kind": "move", "box": "box-2", "stream": "gate", "reason": "joined"}, "gate moves to box-2 (joined)"),
        ({"kind": "move", "stream": "gate", "reason": "no_room"}, "gate leaves its box (no_room)"),
    ]
    for fields, words in told:
        assert in_words(fields) == words
    # Whatever the coordinator tells has words: each is called with its kind.
    source = "".join(path.read_text() for path in (ROOT / "streamd" / "fleet").glob("*.py"))
    kinds = set(re.findall(r'happen\("(\w+)"', source)) | set(
        re.findall(r'_lose_streams\(now, member, "(\w+)"', source)
    )
    assert len(kinds) == 9
    fields = {"box": "b", "stream": "s", "reason": "r", "detail": "d"}
    assert [kind for kind in kinds if kind in in_words(fields | {"kind": kind}).split()] == []


def test_why_a_box_has_no_daemon_is_shown_in_full(capsys: pytest.CaptureFixture[str]) -> None:
    show(status([box("box-1", "JOINING", "the daemon exited with code 3: model m.onnx: does not exist")], []))
    assert "\nbox-1: the daemon exited with code 3: model m.onnx: does not exist\n" in capsys.readouterr().out


def test_there_is_one_fleet_of_a_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.delenv("STATE_DIRECTORY", raising=False)
    for _ in range(2):
        with only_one(), pytest.raises(ConfigError, match="a fleet runs on this machine already"), only_one():
            pass


def test_a_fleet_is_settled_once_nothing_is_under_way() -> None:
    assert settled(status([box("box-1")], [stream("a"), stream("b", "WAITING", "no_room", None)]))
    assert settled(status([box("box-1")], [stream("a", "DOWN", "unreachable")]))
    assert not settled(status([box("box-1")], [stream("a", "DOWN")])), "its camera is being opened"
    assert not settled(status([], []))
    assert not settled(status([box("box-1", "JOINING")], []))
    assert not settled(status([box("box-1")], [stream("a", "MOVING")]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "FILE"], "there is no section `fleet`"),
        (["apply", "missing.yaml"], "missing.yaml: "),
        (["stop", "--state-dir", "x"], "--state-dir is for --here"),
    ],
)
def test_mistakes(arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "one.yaml"
    file.write_text("model: {path: m.onnx}\nstreams: [{id: a, kind: synthetic}]\n")
    assert main(["fleet", *[str(file) if a == "FILE" else a for a in arguments]]) == 2
    assert message in capsys.readouterr().err


def test_without_ray(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    assert main(["fleet", "status"]) == 2
    assert "pip install 'streamd[fleet]'" in capsys.readouterr().err


def test_a_cluster_that_has_died_is_told_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("ray")
    address = f"127.0.0.1:{free_port()}"
    began = time.monotonic()
    assert main(["fleet", "status", "--address", address]) == 8
    assert time.monotonic() - began < 20, "Ray itself tries for minutes"
    assert f"no Ray cluster at {address}: [Errno 111] Connection refused; " in capsys.readouterr().err


@pytest.mark.parametrize("action", [["status"], ["stop"], ["drain", "box-1"]])
@pytest.mark.parametrize("left", [None, "127.0.0.1:1"], ids=["none was there", "one was killed"])
def test_no_fleet_on_this_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], action: list[str],
    left: str | None,
) -> None:  # fmt: skip
    pytest.importorskip("ray")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    if left is not None:
        address_file().parent.mkdir(parents=True)
        address_file().write_text(left)
    assert main(["fleet", *action]) == 8
    (line,) = capsys.readouterr().err.splitlines()
    why = "" if left is None else f" ({left}: [Errno 111] Connection refused)"
    assert line.startswith(f"streamd: no fleet runs on this machine{why}; `streamd fleet run FLEET.yaml` starts one")


def test_what_is_no_address(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("ray")
    assert main(["fleet", "status", "--address", "server"]) == 2
    assert capsys.readouterr().err == "streamd: --address: server: expected HOST:PORT of a Ray cluster\n"
    monkeypatch.setenv("RAY_ADDRESS", "server")
    assert main(["fleet", "status"]) == 2
    assert capsys.readouterr().err == "streamd: RAY_ADDRESS: server: expected HOST:PORT of a Ray cluster\n"


def test_nothing_runs_here(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "address").write_text("127.0.0.1:1")  # of a fleet on this machine
    assert main(["fleet", "stop", "--here", "--state-dir", str(tmp_path)]) == 0
    assert "no box runs on this machine" in capsys.readouterr().out
