"""Which worker gets which stream, and what configuration."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from streamd.config import Config
from streamd.config.loader import load
from streamd.errors import ConfigError
from streamd.workers.share import config_of, devices_of, share_out


def config(folder: Path, text: str) -> Config:
    (folder / "c.yaml").write_text("model: {path: none}\n" + text)
    return load(folder / "c.yaml").config


def streams(*named: str) -> str:
    return "streams: [" + ", ".join(f"{{{each}, kind: synthetic}}" for each in named) + "]\n"


def test_streams_are_dealt_out_evenly_and_stay(tmp_path: Path) -> None:
    c = config(tmp_path, "workers: 2\n" + streams(*(f"id: s{i}" for i in range(5))))
    shares = share_out(c.streams, devices_of(c))
    assert shares == {"s0": 0, "s1": 1, "s2": 0, "s3": 1, "s4": 0}
    fewer = config(tmp_path, "workers: 2\n" + streams("id: s1", "id: s3", "id: new", "id: s4"))
    assert share_out(fewer.streams, devices_of(fewer), shares) == {"s1": 1, "s3": 1, "s4": 0, "new": 0}


def test_workers_take_the_devices_in_turn_and_streams_follow_theirs(tmp_path: Path) -> None:
    text = 'workers: 3\nengine: {kind: "null", device: [4, 7]}\n'
    c = config(tmp_path, text + streams("id: a, device: 7", "id: b", "id: c, device: 7", "id: d, device: 4"))
    assert devices_of(c) == [4, 7, 4]
    shares = share_out(c.streams, devices_of(c))
    assert shares == {"a": 1, "b": 0, "c": 1, "d": 2}
    moved = config(tmp_path, text + streams("id: a, device: 4", "id: b"))
    assert share_out(moved.streams, devices_of(moved), shares)["a"] in (0, 2)


def test_a_worker_s_configuration_survives_the_pipe(tmp_path: Path) -> None:
    c = config(
        tmp_path,
        'workers: 2\nengine: {kind: "null", device: [0, 1]}\nsinks: [{kind: zmq, bind: "ipc:///x"}]\n'
        "metrics: {listen: '127.0.0.1:0'}\nbatch: {max: 4}\n"
        "streams: [{id: a, kind: synthetic},\n"
        "  {id: b, url: 'rtsp://u:p@cam/x', crop: {x: 0, y: 0, width: 16, height: 16}}]\n",
    )
    mine = config_of(c, 1, {"a": 0, "b": 1})
    assert ([s.id for s in mine.streams], mine.workers, mine.metrics.listen) == (["b"], 1, None)
    assert mine.engine.device == 1  # type: ignore[attr-defined]
    assert mine.drain_s < c.drain_s
    wire = msgspec.json.encode(mine.model_dump(mode="json"))
    assert Config.model_validate(msgspec.json.decode(wire)) == mine
    assert config_of(c, 1, {"a": 0, "b": 1}, without={"b"}).streams == ()


def test_every_device_needs_a_worker(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"c\.yaml:2: workers: 2 processes cannot use 3 devices; set 3 or more, or 1"):
        config(tmp_path, 'workers: 2\nengine: {kind: "null", device: [0, 1, 2]}\n' + streams("id: a"))
