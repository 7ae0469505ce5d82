"""The difference between two configurations, and what a running daemon refuses of it."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest

from streamd.config.loader import load
from streamd.errors import ConfigError
from streamd.runtime.reload import Loading, Reread, check, difference

BASE = """
model: {path: m.onnx}
engine: {kind: "null", latency_ms: 1}
sinks: [{kind: jsonl, path: out.jsonl}]
streams:
  - {id: a, kind: synthetic, fps: 5}
  - {id: b, kind: synthetic, fps: 5}
  - {id: c, url: "rtsp://cam/x"}
"""


def differ(folder: Path, *replaced: tuple[str, str]) -> tuple[list[str], list[str], list[str], list[str]]:
    """Ids added, changed and removed, and the names of fields that cannot change, after the replacements."""
    after = BASE
    for old, new in replaced:
        assert old in after
        after = after.replace(old, new)
    (folder / "key").write_text("k" * 40)
    (folder / "c.yaml").write_text(BASE)
    before = load(folder / "c.yaml").config
    (folder / "c.yaml").write_text(after)
    loaded = load(folder / "c.yaml")
    found = difference(before, loaded.config)
    fixed = [loaded.where(path).removeprefix(f"{folder}/") for path in found.fixed]
    return [s.id for s in found.added], [s.id for s in found.changed], list(found.removed), fixed


def test_nothing_differs(tmp_path: Path) -> None:
    assert differ(tmp_path) == ([], [], [], [])


def test_the_order_of_streams_means_nothing(tmp_path: Path) -> None:
    one, two = "  - {id: a, kind: synthetic, fps: 5}\n", "  - {id: b, kind: synthetic, fps: 5}\n"
    assert differ(tmp_path, (one + two, two + one)) == ([], [], [], [])


def test_streams_come_change_and_go_one_by_one(tmp_path: Path) -> None:
    replaced = ("id: a, kind: synthetic, fps: 5", "id: d, kind: synthetic, fps: 5"), ("cam/x", "cam/y")
    assert differ(tmp_path, *replaced) == (["d"], ["c"], ["a"], [])


def test_another_kind_of_the_same_id_is_a_change(tmp_path: Path) -> None:
    assert differ(tmp_path, ('id: c, url: "rtsp://cam/x"', "id: c, kind: synthetic")) == ([], ["c"], [], [])


@pytest.mark.parametrize(
    ("old", "new", "fixed"),
    [
        ("m.onnx", "n.onnx", ["c.yaml:2: model.path"]),
        (
            "{kind: jsonl, path: out.jsonl}",
            "{kind: zmq, bind: 'ipc://z', curve: {secret_key: '${file:key}', clients: any}}",
            ["c.yaml:4: sinks[0].kind"],
        ),
        ("m.onnx", "m.onnx, detect: {conf: 0.6}", ["c.yaml:2: model.detect.conf"]),
        ("latency_ms: 1", "latency_ms: 2, slots: 7", ["c.yaml:3: engine.latency_ms", "c.yaml:3: engine.slots"]),
        ('kind: "null", latency_ms: 1', "kind: openvino", ["c.yaml:3: engine.kind"]),
        ("out.jsonl", "in.jsonl", ["c.yaml:4: sinks[0].path"]),
        ("sinks: [", "sinks: [{kind: jsonl}, ", ["c.yaml:4: sinks"]),
        ("streams:", "batch: {max: 3}\nstreams:", ["c.yaml:5: batch.max"]),
        ("streams:", "metrics: {listen: null}\nstreams:", ["c.yaml:5: metrics.listen"]),
        ("streams:", "logging: {level: debug}\nstreams:", []),
        ("streams:", "drain_s: 2\nstall_s: 3\nstreams:", []),
    ],
)
def test_what_needs_a_restart_is_named_with_its_line(tmp_path: Path, old: str, new: str, fixed: list[str]) -> None:
    assert differ(tmp_path, (old, new)) == ([], [], [], fixed)


def test_the_refusal_names_every_field_and_the_way_out(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(BASE)
    before = load(tmp_path / "c.yaml").config
    (tmp_path / "c.yaml").write_text(BASE.replace("m.onnx", "n.onnx").replace("latency_ms: 1", "latency_ms: 2"))
    after = load(tmp_path / "c.yaml")
    with pytest.raises(ConfigError) as caught:
        check(difference(before, after.config), after.where)
    lines = str(caught.value).splitlines()
    assert [line.split(": ")[1] for line in lines] == ["model.path", "engine.latency_ms"]
    assert all(line.endswith("systemctl restart)") for line in lines)
    check(difference(before, before))


class Slow(Reread):
    """A file that takes its time."""

    def __init__(self, seconds: float, error: BaseException | None = None) -> None:
        super().__init__("slow.yaml")
        self._seconds, self._error = seconds, error
        self.woken = threading.Event()
        self.wake = self.woken.set

    def load(self) -> Any:
        time.sleep(self._seconds)
        if self._error is not None:
            raise self._error
        return "loaded"


def test_a_file_is_read_beside_the_main_loop() -> None:
    slow = Slow(0.2)
    began = time.monotonic()
    loading = Loading(slow)
    assert loading.result() is None
    assert time.monotonic() - began < 0.15
    assert slow.woken.wait(5)
    assert str(loading.result()) == "loaded"


def test_whatever_is_wrong_with_it_is_told() -> None:
    slow = Slow(0, ZeroDivisionError("odd"))
    loading = Loading(slow)
    assert slow.woken.wait(5)
    assert isinstance(loading.result(), ZeroDivisionError)


def test_a_package_that_exits_in_a_check_refuses_the_file_at_once() -> None:
    slow = Slow(0, SystemExit("no licence"))
    loading = Loading(slow)
    assert slow.woken.wait(5)
    assert str(loading.result()) == "slow.yaml: SystemExit: no licence"


def test_a_file_that_takes_too_long_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streamd.runtime.reload.LOAD_LIMIT_S", 0.05)
    loading = Loading(Slow(0.5))
    time.sleep(0.1)
    assert "could not be read within" in str(loading.result())


def test_a_reload_without_a_thread_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    assert isinstance(Loading(Slow(0)).result(), RuntimeError)
