"""Every fault of the fake camera against one daemon at once: the reason that it tells, the way back, the neighbours.

All cameras start sound, fall ill at the same time, and get well at the same time; eight healthy ones run beside them.
"""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import pytest
from fakecam import FAULTS, FakeCamera

from streamd.sinks.message import StatusMessage
from tests.behaviour.daemon import Running, Subscriber, daemon, until
from tests.faults.clips import small

OPEN_S, READ_S, WAIT_S = 3.0, 2.5, 1.0
SLACK_S = 10.0
"""For a loaded machine."""


@dataclass
class Case:
    """A fault, what is expected of it, and what was seen."""

    fault: str
    reason: str = ""
    """Empty where the stream goes on and nothing is told."""
    within_s: float = 0.0
    """Until the reason is told."""
    breaks: bool = True
    """Whether the connection is given up."""
    connects_anew: bool = False
    """Whether the fault is only met by a new connection."""
    codec: str = "h264"
    """Of the stream while the fault lasts."""
    also: set[str] = field(default_factory=set)
    """Further reasons that may be told."""
    told_s: float | None = None
    recovered_s: float | None = None
    statuses: list[StatusMessage] = field(default_factory=list)
    share: float = 0.0
    """Of the frames that a healthy stream had meanwhile."""

    @property
    def stream(self) -> str:
        return self.fault.replace(":", "-").replace(".", "_")


BROKEN = [
    Case("refuse", "refused", 0.2, also={"disconnected"}),
    Case("mute", "timeout_open", OPEN_S, connects_anew=True),
    Case("hang:OPTIONS", "timeout_open", OPEN_S, connects_anew=True),
    Case("hang:DESCRIBE", "timeout_open", OPEN_S, connects_anew=True),
    Case("hang:SETUP", "timeout_open", OPEN_S, connects_anew=True),
    Case("hang:PLAY", "timeout_open", OPEN_S, connects_anew=True),
    Case("status:404", "not_found", 0.2, connects_anew=True),
    Case("unauthorized:basic", "auth", 0.2, connects_anew=True),
    Case("unauthorized:digest", "auth", 0.2, connects_anew=True),
    Case("silence:0", "timeout_read", READ_S, also={"timeout_open", "rtcp_only"}),
    Case("rtcp_only:0", "rtcp_only", READ_S),
    Case("codec:0", "codec_changed", READ_S + WAIT_S, codec="hevc", also={"corrupt", "rtcp_only", "timeout_read"}),
    Case("disconnect:0.1", "disconnected", 0.5),
    Case("hangup:5", "disconnected", 0.5),
]
ON = [
    Case("loss:0.05", "", breaks=False, also={"corrupt"}),
    Case("reorder:0.1", "", breaks=False, also={"corrupt"}),
    Case("truncate:0.05", "", breaks=False, also={"corrupt", "size_changed"}),
    Case("flip:0.05", "", breaks=False, also={"corrupt", "size_changed"}),
    Case("forward:10", "clock_jump", 5.0, breaks=False),
    Case("back:10", "clock_jump", 5.0, breaks=False),
    Case("repeat:0.5", "clock_jump", 0.5, breaks=False),
    Case("resize:0", "size_changed", 0.5, breaks=False),
    Case("half_rate", "", breaks=False),
    Case("burst:1", "", breaks=False),
    Case("drip:1", "", breaks=False),
]
CASES = BROKEN + ON
HEALTHY = tuple(f"good{i}" for i in range(8))


@dataclass
class Seen:
    cases: dict[str, Case]
    healthy_share: dict[str, float]
    """Published of what their camera sent."""
    healthy: dict[str, list[StatusMessage]]
    metrics: dict[tuple[str, tuple[tuple[str, str], ...]], float]
    logged: set[tuple[str, str]]
    """Stream and reason of every line of the log."""

    def value(self, name: str, **labels: str) -> float:
        return self.metrics.get((name, tuple(sorted(labels.items()))), 0.0)


def since(subscriber: Subscriber, stream: str, wall: float) -> list[StatusMessage]:
    return [s for s in list(subscriber.statuses[stream]) if s.published_at >= wall]


def logged_since(running: Running, wall: float) -> dict[tuple[str, str], float]:
    """When each stream's reasons were first logged after `wall`, Unix seconds."""
    found: dict[tuple[str, str], float] = {}
    for line in running.log():
        at = datetime.fromisoformat(line["timestamp"].replace("Z", "+00:00")).timestamp()
        if at >= wall:
            found.setdefault((str(line.get("stream")), str(line.get("reason"))), at)
    return found


def fall_ill(cases: list[Case], cameras: dict[str, FakeCamera], subscriber: Subscriber, running: Running) -> None:
    """All faults at once, until every reason was told, lost packets have damaged frames, and the others have gone on
    for a while.

    A status is the latest one: a busy machine may not get to send one that lasts as short as the wait here, which a
    camera that was silent leaves for another reason. The log has each.
    """
    began, wall = time.monotonic(), time.time()
    frames = {s: len(subscriber.frames[s]) for s in (*cameras, HEALTHY[0])}
    for case in cases:
        cameras[case.stream].set(case.fault)
        if case.connects_anew:
            cameras[case.stream].cut()
    waiting = {c.stream: c for c in cases if c.reason}
    damaged, look_at = False, began + 6
    while (waiting or not damaged or time.monotonic() - began < 6) and time.monotonic() - began < 30:
        time.sleep(0.05)
        for case in list(waiting.values()):
            told = [s for s in since(subscriber, case.stream, wall) if s.reason == case.reason]
            if told:
                case.told_s = told[0].published_at - wall
                del waiting[case.stream]
        if time.monotonic() >= look_at:
            look_at += 0.5
            # Which pictures the lost packets belong to is chance: none is damaged where each was the last of its group.
            labels = {"stream": "loss-0_05", "reason": "quarantine"}
            damaged = damaged or running.value("streamd_frames_dropped_total", **labels) > 0
            logged = logged_since(running, wall) if waiting else {}
            for case in list(waiting.values()):
                if (at := logged.get((case.stream, case.reason))) is not None:
                    case.told_s = at - wall
                    del waiting[case.stream]
    for case in cases:
        case.statuses = since(subscriber, case.stream, wall)
        came, healthy = (len(subscriber.frames[s]) - frames[s] for s in (case.stream, HEALTHY[0]))
        case.share = came / healthy


def get_well(cases: list[Case], cameras: dict[str, FakeCamera], subscriber: Subscriber) -> None:
    """All sound again, until every stream is LIVE, at ease, and publishes."""
    began = time.monotonic()
    frames = {c.stream: len(subscriber.frames[c.stream]) for c in cases}
    for camera in cameras.values():
        camera.set("none")
    waiting = {c.stream: c for c in cases}
    while waiting and time.monotonic() - began < 30:
        time.sleep(0.05)
        for case in list(waiting.values()):
            more = len(subscriber.frames[case.stream]) > frames[case.stream]
            if more and subscriber.state(case.stream) == ("LIVE", ""):
                case.recovered_s = time.monotonic() - began
                del waiting[case.stream]


def published(running: Running) -> dict[str, float]:
    return {s: running.value("streamd_frames_published_total", stream=s) for s in HEALTHY}


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Seen:
    folder: Path = tmp_path_factory.mktemp("matrix")
    clip = small(folder)
    others = {"resize:0": small(folder, "large", (320, 240)), "codec:0": small(folder, "hevc", codec="libx265")}
    cases = {c.stream: c for c in CASES}
    with ExitStack() as stack:
        made = {c.stream: FakeCamera(clip, alternate=others.get(c.fault)) for c in CASES}
        cameras = {name: stack.enter_context(camera) for name, camera in made.items()}
        good = stack.enter_context(FakeCamera(clip))
        urls = {name: camera.url for name, camera in cameras.items()} | dict.fromkeys(HEALTHY, good.url)
        limits = f"ring: 64, max_age_ms: 0, open_timeout_s: {OPEN_S}, read_timeout_s: {READ_S}, "
        limits += f"reconnect: {{initial_s: 0.2, max_s: {WAIT_S}}}"
        endpoint = f"ipc://{folder}/z"
        streams = "\n".join(f"  - {{id: {name}, url: '{url}', {limits}}}" for name, url in urls.items())
        streams += f"\n  - {{id: nowhere, url: 'rtsp://nothing.invalid/x', {limits}}}"
        config = (
            f'model: {{path: none}}\nengine: {{kind: "null"}}\nsinks: [{{kind: zmq, bind: "{endpoint}", ring: 4096}}]\n'
        )
        running = stack.enter_context(daemon(folder, f"{config}streams:\n{streams}\n"))
        subscriber = Subscriber(endpoint)
        until(lambda: all(subscriber.state(s)[0] == "LIVE" and subscriber.frames[s] for s in urls), 40, "all live")
        before, sent = published(running), good.pictures
        fall_ill(list(cases.values()), cameras, subscriber, running)
        get_well(list(cases.values()), cameras, subscriber)
        after, sent = published(running), good.pictures - sent
        metrics = running.metrics()
        assert running.stop() == 0
        logged = {(str(line.get("stream")), str(line.get("reason"))) for line in running.log()}
        subscriber.close()
    statuses = {s: list(subscriber.statuses[s]) for s in (*HEALTHY, "nowhere")}
    return Seen(cases, {s: (after[s] - before[s]) * len(HEALTHY) / sent for s in HEALTHY}, statuses, metrics, logged)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.fault)
def test_the_reason_is_told_and_the_stream_comes_back(seen: Seen, case: Case) -> None:
    case = seen.cases[case.stream]
    reasons = {s.reason for s in case.statuses} - {"", case.reason, "overload"}
    assert reasons <= case.also | ({"disconnected"} if case.connects_anew else set())
    if case.reason:
        assert case.told_s is not None, f"told instead: {reasons}"
        assert case.told_s < case.within_s + SLACK_S
        assert seen.value("streamd_stream_failures_total", stream=case.stream, reason=case.reason) >= 1
        assert (case.stream, case.reason) in seen.logged
    assert case.recovered_s is not None
    # A wait, the rest of an attempt that hangs, and probing; or until a trouble counts as over.
    assert case.recovered_s < OPEN_S + WAIT_S + 1.5 + SLACK_S
    broken = any(s.state == "BACKOFF" for s in case.statuses)
    assert broken == case.breaks
    if not case.breaks:
        assert seen.value("streamd_stream_reconnects_total", stream=case.stream) == 0
        assert case.share > 0.2


def test_what_each_fault_does_to_the_frames(seen: Seen) -> None:
    cases = seen.cases
    assert 0.3 < cases["half_rate"].share < 0.7
    for whole in ("burst:1", "drip:1", "reorder:0.1", "repeat:0.5", "forward:10"):
        case = next(c for c in cases.values() if c.fault == whole)
        assert case.share > 0.7, whole
    assert (320, 240) in {(s.width, s.height) for s in cases["resize-0"].statuses}
    assert "hevc" in {s.codec for s in cases["codec-0"].statuses}
    assert seen.value("streamd_rtp_packets_lost_total", stream="loss-0_05") > 0
    assert seen.value("streamd_frames_dropped_total", stream="loss-0_05", reason="quarantine") > 0


def test_the_neighbours_notice_nothing(seen: Seen) -> None:
    for stream in HEALTHY:
        assert seen.healthy_share[stream] > 0.9
        assert not [k for k in seen.metrics if k[0] == "streamd_frames_dropped_total" and ("stream", stream) in k[1]]
        assert seen.value("streamd_stream_reconnects_total", stream=stream) == 0
        assert {(s.state, s.reason) for s in seen.healthy[stream]} <= {("CONNECTING", ""), ("LIVE", ""), ("ENDED", "")}


def test_a_name_that_does_not_resolve(seen: Seen) -> None:
    assert ("BACKOFF", "dns") in {(s.state, s.reason) for s in seen.healthy["nowhere"]}
    assert seen.value("streamd_stream_failures_total", stream="nowhere", reason="dns") >= 1
    assert ("nowhere", "dns") in seen.logged


def test_every_fault_is_tried() -> None:
    elsewhere = {"none", "no_keyframe"}  # the last takes half a minute: test_sources.py
    assert {c.fault.partition(":")[0] for c in CASES} | elsewhere == set(FAULTS)
