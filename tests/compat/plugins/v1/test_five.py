"""The contract suites on the five kinds."""

import socket

import numpy as np
from five.sink import DatagramsSettings
from five.source import BarsSettings
from streamd.testing.engines import EngineContract
from streamd.testing.heads import HeadContract
from streamd.testing.objects import OBJECTS, Case, spec
from streamd.testing.sinks import Reader, SinkContract, decoded
from streamd.testing.sources import COUNT, FPS, HEIGHT, WIDTH, SourceContract
from streamd.testing.trackers import TrackerContract


class TestBars(SourceContract):
    kind = "bars"

    def contract(self, folder, paced, **settings):
        fps = FPS if paced else 0
        return BarsSettings(id="s", width=WIDTH, height=HEIGHT, fps=fps, count=COUNT, **settings)


class TestPlain(EngineContract):
    kind = "plain"


class TestScored(HeadContract):
    kind = "scored"

    def cases(self):
        return [Case("", encode, None, recognised=False)]


def encode(batch, index):
    rows = np.zeros((batch, 20, 6), np.float32)
    for i, (cx, cy, width, height, objectness, class_id, score) in enumerate(OBJECTS):
        rows[index, i] = cx, cy, width, height, objectness * score, class_id
    return spec((-1, 20, 6), head={"kind": "scored"}), [rows]


class TestNearest(TrackerContract):
    kind = "nearest"


class TestDatagrams(SinkContract):
    kind = "datagrams"

    def contract(self, folder):
        reader = Datagrams()
        return DatagramsSettings(port=reader.socket.getsockname()[1]), reader


class Datagrams(Reader):
    def __init__(self):
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        self.socket.bind(("127.0.0.1", 0))
        self.socket.settimeout(5)

    def all(self, count):
        return [decoded(self.socket.recv(65_536)) for _ in range(count)]

    def close(self):
        self.socket.close()
