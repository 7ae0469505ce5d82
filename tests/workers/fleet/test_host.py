"""What surrounds the coordinator, on a cluster whose nodes the test tells; `deaths` has real ones."""

from __future__ import annotations

import json
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from streamd.errors import ConfigError, SinkError, StreamdError
from streamd.fleet import BoxSettings, FleetSettings
from streamd.fleet.records import BoxReport
from streamd.workers.fleet.actors import BOXES_LABEL, _node, without_rays
from streamd.workers.fleet.box import Configuration
from streamd.workers.fleet.host import CLUSTER_S, CoordinatorHost, read_fleet
from streamd.workers.fleet.roster import Node, Roster, Wanted
from tests.events.journals import until
from tests.sinks.brokers import free_port

TEXT = """
model: {path: model.onnx}
fleet: {box: {fps: 100}, listen: LISTEN, single_session: ["y*"]}
streams:
  - {id: gate, url: "${CAM:-clip}.mp4"}
  - {id: yard, kind: synthetic}
sinks:
  - {kind: zmq, bind: "tcp://127.0.0.1:555${STREAMD_BOX_INDEX}"}
"""


class Nodes:
    """A cluster that has the nodes that it is given."""

    def __init__(self, *names: str) -> None:
        self.listed = [Node(f"{i:040}", n, "127.0.0.1", (), 1) for i, n in enumerate(names)]
        self.started: list[Wanted] = []
        self.values: dict[str, bytes] = {}

    def nodes(self, _: BoxSettings) -> list[Node]:
        return self.listed

    def boxes(self) -> set[str]:
        return {b.actor for b in self.started}

    def start(self, box: Wanted, _: FleetSettings) -> None:
        self.started.append(box)

    def keep(self, key: str, value: bytes) -> None:
        self.values[key] = value

    def kept(self, key: str) -> bytes | None:
        return self.values.get(key)


def configuration(listen: str = "null", text: str = TEXT) -> Configuration:
    return Configuration(text.replace("LISTEN", listen), "/base")


@contextmanager
def host(cluster: Nodes, given: Configuration) -> Iterator[CoordinatorHost]:
    made = CoordinatorHost(given, cluster)
    made.start()
    try:
        yield made
    finally:
        made.close()


def test_boxes_are_named_after_their_nodes() -> None:
    nodes = [Node("b" * 40, "yard", "10.0.0.2", (), 2), Node("a" * 40, "gate", "10.0.0.1", (), 1),
             Node("c" * 40, "gate", "10.0.0.3", (), 1), Node("d" * 40, "head", "10.0.0.4", (), 0)]  # fmt: skip
    found = Roster().wanted(nodes, [], 10)
    assert [(w.name, w.index) for w in found] == [("gate", 1), ("gate-cccccc", 1), ("yard-1", 1), ("yard-2", 2)]
    assert [w.name for w in Roster().wanted(nodes, [], 2)] == ["gate", "gate-cccccc"]
    assert found[0].actor == "box:gate:aaaaaaaaaaaa"


def names(found: list[Wanted]) -> dict[str, str]:
    return {w.name: w.node.id[0] for w in found}


def test_names_stay_whatever_ray_thinks_of_other_nodes() -> None:
    def node(letter: str, name: str, address: str = "10.0.0.1", boxes: int = 1) -> Node:
        return Node(letter * 40, name, address, (), boxes)

    old, new, other = node("a", "gate"), node("b", "gate"), node("c", "gate", "10.0.0.9")
    for again in (old, new), (new, old):
        roster = Roster()
        there: set[str] = set()
        first = roster.wanted([old], there, 9)
        there |= {w.actor for w in first}
        assert names(first) == {"gate": "a"}
        for _ in range(3):  # it has been started again, and Ray still takes the old one for alive
            found = roster.wanted(again, there, 9)
            there |= {w.actor for w in found}
            assert names(found) == {"gate": "b"}
        assert names(roster.wanted([new], there, 9)) == {"gate": "b"}
        assert names(Roster().wanted(again, {w.actor for w in first}, 9)) == {"gate": "b"}, "a new coordinator"
    roster = Roster()
    assert names(roster.wanted([old, other], [], 9)) == {"gate": "a", "gate-cccccc": "c"}
    both = {w.actor for w in roster.wanted([old, other], [], 9)}
    assert names(roster.wanted([other], both, 9)) == {"gate-cccccc": "c"}, "its daemon has this name"
    assert names(Roster().wanted([other], {"box:gate-cccccc:cccccccccccc"}, 9)) == {"gate-cccccc": "c"}
    assert names(roster.wanted([other, new], both, 9)) == {"gate": "b", "gate-cccccc": "c"}
    two = node("d", "yard", boxes=2)
    assert names(Roster().wanted([two], {"box:yard-2:dddddddddddd"}, 9)) == {"yard-1": "d", "yard-2": "d"}
    assert Roster().wanted([node("e", "head", boxes=0)], [], 9) == []


@pytest.mark.parametrize(
    ("resources", "labels", "gpus", "boxes", "takes_gpu"),
    [
        ({"CPU": 4.0}, {}, 1.0, 1, False),
        ({"GPU": 4.0}, {}, 1.0, 4, True),
        ({"GPU": 1.0}, {}, 0.5, 2, True),
        ({"GPU": 4.0}, {}, 0.0, 1, False),
        ({"GPU": 4.0}, {BOXES_LABEL: "2"}, 1.0, 2, True),
        ({}, {BOXES_LABEL: "3"}, 1.0, 3, False),
        ({"GPU": 1.0}, {BOXES_LABEL: "0"}, 1.0, 0, True),
    ],
)
def test_a_node_has_a_box_for_each_gpu(
    resources: dict[str, float], labels: dict[str, str], gpus: float, boxes: int, takes_gpu: bool
) -> None:
    found = {"NodeID": "a" * 40, "NodeName": "fe80::1", "NodeManagerAddress": "fe80::1", "Resources": resources,
             "Labels": {**labels, "ray.io/node-id": "x", "site": "yard", "net": "b"}}  # fmt: skip
    node = _node(found, BoxSettings(fps=1, gpus=gpus))
    assert (node.boxes, node.gpus, node.labels, node.name) == (boxes, takes_gpu, ("b", "yard"), "fe80--1")


@pytest.mark.parametrize(
    ("own", "rays"),
    [
        ({}, {"LD_PRELOAD": "/opt/venv/lib/python3.11/site-packages/ray/core/libjemalloc.so"}),
        ({}, {"LD_PRELOAD": "/opt/j.so", "RAY_JEMALLOC_LIB_PATH": "/opt/j.so"}),
        ({}, {"LD_PRELOAD": "/j.so", "MALLOC_CONF": "a", "RAY_JEMALLOC_LIB_PATH": "/j.so", "RAY_JEMALLOC_CONF": "a"}),
        ({"LD_PRELOAD": "/opt/mine.so", "MALLOC_CONF": "c:d"}, {"RAY_ADDRESS": "h:1"}),
    ],
)  # fmt: skip
def test_a_daemon_has_the_environment_of_its_node_without_what_ray_added(
    own: dict[str, str], rays: dict[str, str]
) -> None:
    assert without_rays({"PATH": "/bin", **own, **rays}) == {"PATH": "/bin", **own}


def test_the_file_is_read_for_no_box_in_particular_and_its_mistakes_are_named() -> None:
    found = read_fleet(configuration(), {})
    assert [d.name for d in found.demands] == ["gate", "yard"]
    assert found.single_session == {"yard"}
    for text, message in (
        ("model: {path: m}\nstreams: []\n", "streams"),
        (TEXT.replace("fps: 100", "fps: none").replace("LISTEN", "null"), r"FLEET\.yaml:3: fleet\.box\.fps: "),
        (TEXT.replace("fleet:", "workers: 2\nfleet:").replace("LISTEN", "null"), "workers: a box of a fleet has one"),
        ("model: {path: m}\nstreams: [{id: a, kind: synthetic}]\n", "there is no section `fleet`"),
        (
            TEXT.replace("fleet:", "share: {count: 2, index: 0}\nfleet:").replace("LISTEN", "null"),
            "share: the coordinator",
        ),
        (TEXT.replace("LISTEN", "null, nodes: [{name: a}, {name: a}]"), "two boxes are named a"),
        (TEXT.replace("LISTEN", "null, boxes: 3, most: 2"), r"fleet\.most: 2 is less than fleet\.boxes, which is 3"),
    ):
        with pytest.raises(ConfigError, match=message):
            read_fleet(Configuration(text, "/base"), {})


def test_a_file_with_two_thousand_cameras() -> None:
    listed = "".join(f"  - {{id: camera-{i}, url: 'rtsp://10.1.{i // 250}.{i % 250}/main'}}\n" for i in range(2000))
    text = f"model: {{path: m}}\nfleet: {{box: {{fps: 1200}}, boxes: 50, listen: null}}\nstreams:\n{listed}"
    assert len(read_fleet(Configuration(text, "/base"), {}).demands) == 2000


def test_a_box_for_each_node_and_again_for_one_that_comes_back() -> None:
    cluster = Nodes("n1", "n2")
    with host(cluster, configuration()):
        until(lambda: {b.name for b in cluster.started} == {"n1", "n2"})
        cluster.listed = [cluster.listed[0], Node("f" * 40, "n2", "127.0.0.1", (), 1)]
        until(lambda: len(cluster.started) == 3)
        assert cluster.started[-1].actor == "box:n2:ffffffffffff"


def test_a_coordinator_that_is_restarted_has_the_latest_file_and_what_was_drained() -> None:
    cluster = Nodes("n1", "n2")
    changed = configuration(text=TEXT.replace("gate", "door"))
    with host(cluster, configuration()) as first:
        for name in ("n1", "n2"):
            first.report(BoxReport(name, name))
        with pytest.raises(ConfigError, match="n9: no such box or node; there are n1, n2"):
            first.drain("n9")
        assert first.drain("n2") == ["n2"]
        first.apply(changed)
        for text, name in (("listen: '127.0.0.1:0'", "listen"), ("listen: null, state_dir: other", "state_dir")):
            with pytest.raises(ConfigError, match=rf"fleet\.{name}: cannot be changed"):
                first.apply(configuration(text=TEXT.replace("listen: LISTEN", text)))
    with host(cluster, configuration()) as second:
        assert second.configuration() == changed
        assert second.report(BoxReport("n1", "n1")).revision == changed.revision
        assert not second.report(BoxReport("n1", "n1")).drained
        until(lambda: second.report(BoxReport("n2", "n2")).drained)
        assert second.drain("n2", undo=True) == ["n2"]
    assert json.loads(cluster.values["drained"]) == []


def test_a_coordinator_that_dies_during_a_stop_starts_no_box_again() -> None:
    cluster = Nodes("n1")
    with host(cluster, configuration()) as first:
        until(lambda: cluster.started)
        assert first.stop() == [cluster.started[0].actor]
    cluster.started = []  # it has been stopped
    with host(cluster, configuration()) as second:
        for order in (lambda: second.apply(configuration()), lambda: second.drain("n1")):
            with pytest.raises(StreamdError, match=r"being stopped.*`streamd fleet stop` ends it"):
                order()
        time.sleep(2 * CLUSTER_S)
        assert second.stop() == []
    del cluster.values["stopping"]  # the stop came to its end
    with host(cluster, configuration()):
        until(lambda: cluster.started)


def test_the_port() -> None:
    cluster = Nodes("n1")
    with host(cluster, configuration("'127.0.0.1:0'")) as running:
        running.report(BoxReport("n1", "n1", metrics="10.0.0.1:9188"))

        def get(path: str) -> bytes:
            with urllib.request.urlopen(f"http://{running.listens}{path}", timeout=10) as answer:
                found: bytes = answer.read()
                return found

        assert json.loads(get("/sd")) == [{"targets": ["10.0.0.1:9188"], "labels": {"box": "n1", "node": "n1"}}]
        assert json.loads(get("/status"))["boxes"][0]["box"] == "n1"
        assert b'streamd_fleet_boxes{state="JOINING"} 1.0' in get("/metrics")
        assert b'streamd_fleet_streams_waiting{reason="rebuilding"} 2.0' in get("/metrics")


def test_a_port_in_use_ends_the_first_coordinator_and_not_a_later_one() -> None:
    port = free_port()
    given = configuration(f"'127.0.0.1:{port}'")
    cluster = Nodes("n1")
    with host(Nodes(), given):
        with pytest.raises(SinkError, match=f"fleet.listen: cannot listen on 127.0.0.1:{port}"):
            CoordinatorHost(given, cluster)
        later = CoordinatorHost(given, cluster)
        assert later.listens is None
    later.start()
    until(lambda: later.listens is not None)
    later.close()


def test_what_happened_is_told_once() -> None:
    with host(Nodes("n1"), configuration()) as running:
        running.report(BoxReport("n1", "n1"))
        until(lambda: running.happenings(0)[0] > 0)
        number, found = running.happenings(0)
        assert found[0]["box"] == "n1"
        assert running.happenings(number)[1] == []
        assert running.happenings(number - 1)[1] == found[-1:]
