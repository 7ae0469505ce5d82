"""How many processes are chosen, and that a reload keeps the choice."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from streamd.config import Config
from streamd.engine.tensorrt import driver
from streamd.runtime.reload import Reread
from streamd.workers import auto
from streamd.workers.auto import Machine, choose, settle, settle_like

H200 = Machine(gpus=1, memory_mib=143_000, cores=16, mps=True)


@pytest.mark.parametrize(
    ("streams", "machine", "workers", "mps", "reason"),
    [
        (1, H200, 1, False, "1 streams"),
        (16, H200, 1, False, "16 streams"),
        (17, H200, 2, True, "17 streams"),
        (64, H200, 4, True, "64 streams"),
        (208, H200, 8, True, "8 per GPU"),
        (400, Machine(2, 143_000, 32, True), 16, True, "8 per GPU"),
        (40, Machine(2, 143_000, 32, True), 4, True, "40 streams"),
        (208, Machine(1, 143_000, 16, False), 8, False, "8 per GPU"),
        (208, Machine(1, 143_000, 6, True), 3, True, "6 cores"),
        (64, Machine(1, 8_100, 16, True), 2, True, "8100 MiB"),
        (64, Machine(1, 2_000, 16, True), 1, False, "2000 MiB"),
        (64, Machine(1, 16_000, 1, True), 1, False, "1 cores"),
        (32, Machine(4, 16_000, 64, True), 4, False, "32 streams"),
    ],
)
def test_the_number(streams: int, machine: Machine, workers: int, mps: bool, reason: str) -> None:
    found = choose(streams, machine)
    assert (found.workers, found.mps) == (workers, mps)
    assert reason in found.reason


def config(streams: int, **more: Any) -> Config:
    urls = [{"id": f"s{i}", "url": f"rtsp://192.0.2.1/{i}"} for i in range(streams)]
    return Config.model_validate({"model": {"path": "m.plan"}, "streams": urls} | more)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with a large GPU, many cores and MPS, as far as the choice asks for them."""
    monkeypatch.setattr(driver, "memory_mib", lambda _: 80_000)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)))
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(auto, "tensorrt_unavailable", lambda: None)


def test_without_a_gpu_there_is_one_process() -> None:
    for streams in (1, 100):
        assert settle(config(streams, engine={"kind": "openvino"})).workers == 1
    assert settle(config(3, workers=2, engine={"kind": "openvino"})).workers == 2


def test_many_streams_on_a_gpu(gpu: None) -> None:
    for engine in ({"kind": "auto"}, {"kind": "tensorrt"}):
        found = settle(config(64, engine=engine))
        assert (found.workers, found.engine.kind, found.engine.shares_gpu) == (4, "tensorrt", "auto")
        found = settle(config(5, engine=engine))
        assert found.workers == 1
        assert not found.engine.shares_gpu or found.engine.kind == "auto"
    assert settle(config(64, engine={"kind": "tensorrt", "mps": False})).engine.shares_gpu is False
    assert settle(config(64, engine={"kind": "tensorrt", "mps": True})).engine.shares_gpu is True
    assert settle(config(64, workers=3, engine={"kind": "tensorrt"})).engine.shares_gpu == "auto"
    assert settle(config(64, workers=1, engine={"kind": "tensorrt"})).engine.shares_gpu is False


def test_mps_that_is_not_installed_is_not_chosen(gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    found = settle(config(64, engine={"kind": "tensorrt"}))
    assert (found.workers, found.engine.shares_gpu) == (4, False)


def test_a_reload_keeps_the_choice(gpu: None, tmp_path: Path) -> None:
    running = settle(config(64, engine={"kind": "auto"}))
    more = settle_like(config(200, engine={"kind": "auto"}), running)
    assert (more.workers, more.engine) == (running.workers, running.engine)
    file = tmp_path / "c.yaml"
    file.write_text("model: {path: m.plan}\nstreams: [{id: a, url: 'rtsp://192.0.2.1/a'}]\n")
    reread = Reread(file)
    assert reread.load().config.workers == "auto"
    reread.settle = lambda new: settle_like(new, running)
    assert reread.load().config.workers == 4
    said = settle_like(config(64, workers=2, engine={"kind": "openvino"}), running)
    assert (said.workers, said.engine.kind) == (2, "openvino"), "what the file says is what it says"
