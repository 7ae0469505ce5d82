"""The socket between a worker and its parent."""

from __future__ import annotations

import contextlib
import threading
import time
from pathlib import Path

import pytest
import zmq

from streamd.workers.report import Report, ReportReceiver, parts_of


def report(number: int, order: int = 1) -> Report:
    return Report(number, 7 + number, order, None, [], {}, [])


def test_the_newest_of_each_process_is_received_at_once(tmp_path: Path) -> None:
    endpoint = f"ipc://{tmp_path}/r"
    receiver = ReportReceiver(endpoint)
    try:
        begin = time.monotonic()
        assert list(receiver.receive(50)) == []
        assert time.monotonic() - begin >= 0.04
        with zmq.Context() as context, context.socket(zmq.PUSH) as worker:
            worker.connect(endpoint)
            for order in range(5):
                for number in range(3):
                    worker.send_multipart(parts_of(report(number, order)))
            time.sleep(0.2)
            found: list[Report] = []
            while len(found) < 3 and time.monotonic() - begin < 10:
                found += receiver.receive(1000)
        assert found == [report(number, 4) for number in range(3)]
    finally:
        receiver.close()


def test_reports_that_come_without_end_do_not_hold_the_parent_up(tmp_path: Path) -> None:
    endpoint, stop = f"ipc://{tmp_path}/r", threading.Event()
    receiver = ReportReceiver(endpoint)

    def flood() -> None:
        with zmq.Context() as context, context.socket(zmq.PUSH) as worker:
            worker.setsockopt(zmq.LINGER, 0)
            worker.connect(endpoint)
            while not stop.is_set():
                with contextlib.suppress(zmq.Again):
                    worker.send_multipart(parts_of(report(0)), zmq.DONTWAIT)

    thread = threading.Thread(target=flood)
    thread.start()
    try:
        for _ in range(10):
            assert len(list(receiver.receive(1000))) == 1
    finally:
        stop.set()
        thread.join(10)
        receiver.close()


def test_an_address_that_cannot_be_had_leaves_nothing_open(tmp_path: Path) -> None:
    with pytest.raises(zmq.ZMQError):
        ReportReceiver(f"ipc://{tmp_path}/nowhere/r")
