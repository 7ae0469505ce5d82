"""More frames than the engine can serve: bounded latency, priorities without starvation, recovery by itself."""

from __future__ import annotations

import time
from pathlib import Path

from tests.behaviour.daemon import Running, Subscriber, daemon, until

SLOTS = 2
LATENCY_MS = 50
"""The engine serves 20 frames a second."""
MAX_AGE_MS = 300
SLACK_MS = 250
"""For a machine that is busy with other things."""

HEAD = """
model: {{path: none}}
engine: {{kind: "null", latency_ms: 50, slots: 2}}
batch: {{max: 1}}
sinks: [{{kind: zmq, bind: '{endpoint}'}}]
streams:
"""


def stream(name: str, priority: int, fps: int = 12) -> str:
    # A ring of 64 frames would make each wait for five seconds.
    return (
        f"  - {{id: {name}, kind: synthetic, width: 64, height: 64, fps: {fps}, ring: 64, priority: {priority}, "
        f"max_age_ms: {MAX_AGE_MS}, objective: {{latency_ms: {2 * MAX_AGE_MS}, share: 0.9}}}}\n"
    )


def drops(running: Running, name: str) -> dict[str, float]:
    metrics = running.metrics().items()
    return {
        dict(labels)["reason"]: value
        for (metric, labels), value in metrics
        if metric == "streamd_frames_dropped_total" and ("stream", name) in labels
    }


def test_latency_is_bounded_low_priorities_are_served_and_the_end_of_the_load_is_the_end_of_it(tmp_path: Path) -> None:
    """Two streams of high priority take more than the engine has, two of low priority want some, too."""
    endpoint = f"ipc://{tmp_path}/z"
    head = HEAD.format(endpoint=endpoint)
    high, low = ("h0", "h1"), ("l0", "l1")
    both = "".join(stream(n, 5) for n in high) + "".join(stream(n, 0) for n in low)
    with daemon(tmp_path, head + both) as running:
        subscriber = Subscriber(endpoint)
        until(lambda: sum(len(f) for f in subscriber.frames.values()) > 120, 30)
        counts = {name: len(subscriber.frames[name]) for name in (*high, *low)}
        assert min(counts[n] for n in high) > 2 * max(counts[n] for n in low), counts
        # One frame in eight is the low ones' at least: with four streams each is served once in 32 frames.
        assert min(counts[n] for n in low) >= sum(counts.values()) // 32, counts
        for name in low:
            dropped = drops(running, name)
            assert dropped["too_old"] > 10
            assert "ring_full" not in dropped, "nothing grows: what is too old goes before the ring is full"
            assert running.value("streamd_objective_missed_total", stream=name) >= dropped["too_old"]
        assert running.value("streamd_objective_latency_seconds", stream="l0") == 0.6
        assert running.value("streamd_objective_ratio", stream="l0") == 0.9

        running.reload(head + "".join(stream(n, 0, fps=3) for n in (*high, *low)))  # 12 frames a second: it can be done
        until(lambda: all(subscriber.frames[n][-1].epoch == 1 for n in (*high, *low)))

        def calm() -> bool:
            def seen() -> list[float]:
                return [running.value(f"streamd_objective_{c}_total", stream="l0") for c in ("frames", "missed")]

            before = seen()
            time.sleep(1)
            after = seen()
            return (
                after[0] > before[0]
                and after[1] == before[1]
                and not running.value("streamd_frames_dropped_total", stream="l0", reason="ring_full")
            )

        until(calm, 20, "nothing is missed any more")
        assert running.stop() == 0
        subscriber.close()
    bound = MAX_AGE_MS + (SLOTS + 1) * LATENCY_MS + SLACK_MS
    latencies = sorted(m.latency_ms.total for frames in subscriber.frames.values() for m in frames)
    assert latencies[int(len(latencies) * 0.99)] <= bound
    for name in (*high, *low):
        summary = running.summary(name)
        assert summary["received"] == summary["published"] + sum(summary["dropped"].values())
