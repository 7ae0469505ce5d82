"""The socket between a worker and its parent."""

from __future__ import annotations

import time
from pathlib import Path

import msgspec
import pytest
import zmq

from streamd.workers.report import Report, ReportReceiver


def report(number: int) -> Report:
    return Report(number, 7, 1, None, [], {}, [])


def test_all_that_are_there_are_received_at_once(tmp_path: Path) -> None:
    endpoint = f"ipc://{tmp_path}/r"
    receiver = ReportReceiver(endpoint)
    try:
        begin = time.monotonic()
        assert list(receiver.receive(50)) == []
        assert time.monotonic() - begin >= 0.04
        with zmq.Context() as context, context.socket(zmq.PUSH) as worker:
            worker.connect(endpoint)
            for number in range(3):
                worker.send(msgspec.msgpack.encode(report(number)))
            found: list[Report] = []
            while len(found) < 3 and time.monotonic() - begin < 10:
                found += receiver.receive(1000)
        assert found == [report(number) for number in range(3)]
    finally:
        receiver.close()


def test_an_address_that_cannot_be_had_leaves_nothing_open(tmp_path: Path) -> None:
    with pytest.raises(zmq.ZMQError):
        ReportReceiver(f"ipc://{tmp_path}/nowhere/r")
