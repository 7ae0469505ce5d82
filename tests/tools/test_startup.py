"""What startup.py reports of a start, an outage and a rest."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import startup
import startup_rest
from memory_parts import Parts
from startup_rest import Sample, quantile, told

from tests.behaviour.daemon import daemon, until
from tests.clips import write_clip


def sample(at: float, rss: float, device: float | None, frames: int, late: int = 0, dropped: int = 0) -> Sample:
    of = Counter({"received": 2 * frames, "published": 2 * frames - dropped, "dropped ring_full": dropped})
    latency = Counter({0.01: 2 * frames - late, 0.05: 2 * frames, math.inf: 2 * frames})
    memory = {"daemon": Parts(50.0, 5.0, 0.0), "child 1": Parts(rss - 60, 3.0, 2.0)}
    return Sample(
        at,
        memory,
        device,
        (40.0, at / 10) if device else None,
        at / 100,
        of,
        Counter({"a": frames, "b": frames}),
        latency,
    )


def test_slopes_are_per_minute_and_do_not_count_the_first_minute() -> None:
    samples = [sample(10.0 * i, 500.0 if i < 6 else 100 + i / 6, 1000 - i / 3, 250 * i) for i in range(49)]
    found = told(samples)
    assert found["seconds"] == 480
    assert found["rss_mib_per_min"] == [1.0, 0.0]
    assert found["device_mib_per_min"] == [-2.0, 0.0]
    assert found["rss_mib"] == [500, 108]
    assert found["gpu_and_decoder_percent"] == [40, 24]
    assert found["anon_mib_samples"]["child 1"][::12] == [41, 43, 45, 47]
    assert found["cpu_ms_per_frame"] == round(4.8 * 1e3 / (2 * 48 * 250), 3)
    assert found["processes"]["daemon"]["anon"] == [50, 50, 50, 50, 0, 0]
    assert found["processes"]["child 1"]["anon"] == [41, 48, 41, 48, 1, 0]


def test_rates_drops_and_latencies_are_those_of_the_rest_alone() -> None:
    begin, end = sample(100, 1, None, 1000, late=900, dropped=50), sample(140, 1, None, 2000, late=910, dropped=57)
    end.received["b"] -= 400
    found = told([begin, end])
    assert (found["received_per_s"], found["published_per_s"]) == (50, round((2000 - 7) / 40, 1))
    assert found["dropped"] == {"ring_full": 7}
    assert found["slowest_and_fastest_per_s"] == [15, 25]
    assert (found["p50_below_ms"], found["p99_below_ms"]) == (10, 10)
    assert "device_mib" not in found
    found = told([begin, sample(140, 1, None, 2000, late=930)])
    assert found["p99_below_ms"] == 50, "30 of 2,000 took longer than 10 ms"


def test_a_quantile_without_observations_is_none() -> None:
    assert quantile({}, 0.5) is None
    assert quantile({0.1: 0, math.inf: 0}, 0.5) is None
    assert quantile({0.1: 1, 0.2: 2, math.inf: 2}, 0.5) == 0.1


def line(at: float, event: str, **more: Any) -> dict[str, Any]:
    return {"timestamp": f"2026-01-01T00:00:{at:06.3f}Z", "event": event, **more}


def test_the_log_tells_how_decoders_were_created_and_what_the_slowest_streams_went_through() -> None:
    since = startup._at(line(10, ""))
    lines = [
        line(5, "stream live", stream="a"),
        line(11.1, "decoder created", stream="a", queued_s=0, connect_s=0.4, waited_s=0, create_s=0.1),
        line(11.2, "decoder created", stream="b", queued_s=0, connect_s=0.6, waited_s=0.1, create_s=0.2),
        line(11.2, "stream backoff", stream="b", reason="refused"),
        line(11.3, "stream live", stream="a"),
        line(12, "stream connecting", stream="b"),
        line(13, "stream live", stream="b"),
        line(14, "stream backoff", stream="b", reason="disconnected"),
    ]
    log = startup.Log(SimpleNamespace(log=lambda: lines))  # type: ignore[arg-type]
    found = log.decoders(since)
    assert (found["created"], found["first_s"], found["span_s"], found["at_a_time"]) == (2, 1.1, 0.2, 1.5)
    assert found["connect_s"] == [0.4, 0.4, 0.6]
    assert found["then_live_s"] == [0.2, 0.2, 1.8]
    assert log.failures(since) == {"refused": 1, "disconnected": 1}
    [slowest] = log.slowest(since, 1)
    assert slowest == "b: 1.20 decoder created; 1.20 stream backoff refused; 2.00 stream connecting; 3.00 stream live"
    assert log.decoders(startup._at(line(30, ""))) == {"created": 0}


def test_a_sample_that_cannot_be_taken_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [sample(0, 1, None, 10), None, sample(2, 1, None, 20)]

    def look(running: Any) -> Sample:
        taken = found.pop(0)
        if taken is None:
            raise TimeoutError
        return taken

    monkeypatch.setattr(startup_rest, "look", look)
    monkeypatch.setattr(startup_rest, "mapped", lambda running: {})
    monkeypatch.setattr("time.sleep", lambda s: None)
    at = iter((0.0, 0.0, 0.0, 0.5, 1.0, 2.0))
    monkeypatch.setattr("time.monotonic", lambda: next(at))
    report = startup_rest.rest(SimpleNamespace(), 1.5)  # type: ignore[arg-type]
    assert (report["missing_samples"], report["received_per_s"]) == (1, 10)


def test_a_rest_of_a_daemon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(startup_rest, "device", lambda: None)
    clip = write_clip(tmp_path / "clip.mp4", frames=50, fps=10, size=(64, 64))
    streams = json.dumps([{"id": f"s{i}", "url": str(clip), "loop": True} for i in range(2)])
    with daemon(tmp_path, f'model: {{path: none}}\nengine: {{kind: "null"}}\nstreams: {streams}\n') as running:
        until(lambda: running.value("streamd_frames_published_total", stream="s1") > 0)
        found = startup_rest.rest(running, 3, every_s=1)
    assert 14 < found["received_per_s"] < 26
    assert sum(found["dropped"].values()) == 0
    assert found["p99_below_ms"] is not None
    assert len(found["rss_mib_samples"]) == 4
    assert found["rss_mib"][0] > 20
    assert found["processes"]["daemon"]["anon"][0] > 10


def test_what_is_in_use_is_that_of_the_processes_that_lasted(tmp_path: Path) -> None:
    for pid, blocks in ((7, 100.0), (8, 200.0)):
        lines = [f"{10.0 * i} {2**20 * (blocks + i)} {blocks}" for i in range(13)]
        (tmp_path / str(pid)).write_text("\n".join(lines) + "\n")
    (tmp_path / "9").write_text("50.0 1 1\n60.0 1 1\n70.0 1 1\n")  # came and went
    found = startup_rest.in_use(tmp_path, since=60.0)
    assert found == {
        "processes": 2, "malloc_mib": [312.0, 324.0, 12.0, 0.0], "python_blocks": [300.0, 300.0, 0.0, 0.0],
        "malloc_mib_per_min": [6.0, 6.0],
    }  # fmt: skip
    assert startup_rest.in_use(tmp_path, since=1e9) == {"processes": 0}
