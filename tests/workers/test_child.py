"""A real worker under orders of the test: which of them it reports as done."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from streamd.config import Config
from streamd.workers.process import WorkerProcess
from streamd.workers.report import Order, ReportReceiver
from tests.behaviour.daemon import until

START_S = 60
"""A Python on a busy machine."""


def test_an_order_that_is_refused_does_not_block_the_next(tmp_path: Path) -> None:
    receiver = ReportReceiver(f"ipc://{tmp_path}/reports")
    process = WorkerProcess(0)

    def order(number: int, *streams: str, **more: Any) -> Order:
        config = Config.model_validate({
            "model": {"path": "none"}, "engine": {"kind": "null"}, "metrics": {"listen": None}, "drain_s": 2,
            "streams": [{"id": s, "kind": "synthetic", "width": 64, "height": 64} for s in streams],
            "sinks": [{"kind": "jsonl", "path": str(tmp_path / "out")}],
        } | more).model_dump(mode="json")  # fmt: skip
        return Order(
            number, 1, os.getpid(), "boot", config, [], [], f"ipc://{tmp_path}/reports", f"ipc://{tmp_path}/pictures",
            "streamd-worker0", {}, f"ipc://{tmp_path}/events",
        )  # fmt: skip

    def idle() -> bool:
        for report in receiver.receive(100):
            process.take(report)
        return not process.busy

    def streams() -> set[str]:
        assert process.report is not None
        return {status.stream for status in process.report.statuses}

    process.start(order(1, "a"))
    try:
        until(idle, START_S)
        assert (process.state, process.applied, streams()) == ("UP", True, {"a"})
        process.order(order(2, "a", "b", batch={"max": 3}))
        until(idle, 10)
        assert (process.applied, streams()) == (False, {"a"})
        invalid = order(3, "a")
        invalid.config["stall_s"] = "soon"
        process.order(invalid)
        until(idle, 10)
        assert (process.applied, streams()) == (False, {"a"})
        process.order(order(4, "a", "c"))
        until(idle, 10)
        assert process.applied
        until(lambda: idle() and streams() == {"a", "c"}, 10)
        process.drain()
        codes: list[int] = []

        def ended() -> bool:
            idle()
            code = process.poll()
            if code is not None:
                codes.append(code)
            return bool(codes)

        until(ended, 20)
        assert codes == [0]
        assert process.state == "EXITED"
    finally:
        process.kill("the test is over")
        receiver.close()
