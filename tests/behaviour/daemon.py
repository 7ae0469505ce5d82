"""A daemon in a process of its own, and a subscriber that keeps everything it is sent."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
import weakref
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import zmq
from prometheus_client.parser import text_string_to_metric_families
from zmq.utils.monitor import recv_monitor_message

from streamd.sinks.message import DetectionsMessage, StatusMessage
from tests.messages import checked


class Subscriber:
    """Receives in a thread until closed."""

    def __init__(self, endpoint: str) -> None:
        self.frames: dict[str, list[DetectionsMessage]] = defaultdict(list)
        self.statuses: dict[str, list[StatusMessage]] = defaultdict(list)
        self.events: list[dict[str, Any]] = []
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.SUB)
        self._socket.setsockopt(zmq.RCVHWM, 0)
        self._socket.subscribe(b"")
        self._monitor = self._socket.get_monitor_socket(zmq.EVENT_CONNECTED | zmq.EVENT_DISCONNECTED)
        self._connected = 0
        self._socket.connect(endpoint)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _more(self) -> bool:
        """Whether something may still be under way: where the daemon has ended, all of it has arrived by then."""
        while self._monitor.poll(0):
            event = recv_monitor_message(self._monitor)["event"]
            self._connected += 1 if event == zmq.EVENT_CONNECTED else -1
        return bool(self._socket.poll(300 if self._connected else 0))

    def _run(self) -> None:
        while not self._stop.is_set() or self._more():
            if not self._socket.poll(100):
                continue
            parts = self._socket.recv_multipart()
            if parts[0].startswith(b"streamd/event/1/"):
                self.events.append(json.loads(parts[1]))
                continue
            message = checked(parts)
            if isinstance(message, StatusMessage):
                self.statuses[message.stream].append(message)
            else:
                self.frames[message.stream].append(message)

    def close(self) -> None:
        """Takes what is still under way, then ends."""
        self._stop.set()
        self._thread.join(10)
        self._context.destroy(linger=0)

    def state(self, stream: str) -> tuple[str, str]:
        seen = self.statuses.get(stream)
        return (seen[-1].state, seen[-1].reason) if seen else ("", "")


_daemons: weakref.WeakSet[Running] = weakref.WeakSet()
"""Those that a test which fails may want to know of."""


class Running:
    """A daemon process with a metrics port."""

    def __init__(self, process: subprocess.Popen[str], log: Path, config: Path) -> None:
        self.process = process
        self.config = config
        self._log = log
        self._port: int | None = None
        self._test = os.environ.get("PYTEST_CURRENT_TEST", "")
        _daemons.add(self)

    def account(self) -> str:
        """For a test that fails: whether the process lives, where each of its threads is, and its log."""
        code = self.process.poll()
        if code is None:
            # faulthandler writes the stacks of all threads; the test is over anyway.
            self.process.send_signal(signal.SIGABRT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(5)
        state = "was running; the stacks of its threads are at the end" if code is None else f"exit code {code}"
        text = self._log.read_text(errors="replace") if self._log.exists() else "(no log)"
        return f"--- {self.config.name}, process {self.process.pid}: {state}; its log:\n{text[-12_000:] or '(empty)'}"

    def log(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self._log.read_text().splitlines() if line.startswith("{")]

    @property
    def port(self) -> int:
        if self._port is None:
            found = [line["metrics_port"] for line in self.log() if "metrics_port" in line]
            if not found and self.process.poll() is not None:
                raise AssertionError(f"the daemon ended before it had a port\n{self.account()}")
            self._port = next(iter(found))
        return self._port

    def get(self, path: str) -> tuple[int, bytes]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=5) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()

    def metrics(self) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
        text = self.get("/metrics")[1].decode()
        families = text_string_to_metric_families(text)
        return {(s.name, tuple(sorted(s.labels.items()))): s.value for f in families for s in f.samples}

    def value(self, name: str, **labels: str) -> float:
        return self.metrics().get((name, tuple(sorted(labels.items()))), 0.0)

    def reload(self, config: str, result: str = "applied") -> None:
        """Writes another configuration (with the same port) and waits for the daemon's verdict."""
        before = self.value("streamd_config_reloads_total", result=result)
        self.config.write_text(self.config.read_text().splitlines()[0] + "\n" + config)
        self.process.send_signal(signal.SIGHUP)
        until(lambda: self.value("streamd_config_reloads_total", result=result) == before + 1, 20, f"{result} reload")

    def stop(self, timeout: float = 15) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout)

    def summary(self, stream: str) -> dict[str, Any]:
        return next(line for line in self.log() if line["event"] == "stream summary" and line["stream"] == stream)


def until(condition: Callable[[], Any], timeout: float = 20, what: str = "") -> None:
    """Waits for `condition`, which may fail while things start."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        with contextlib.suppress(StopIteration, OSError, FileNotFoundError):
            if condition():
                return
        time.sleep(0.05)
    here = os.environ.get("PYTEST_CURRENT_TEST", "")
    accounts = [running.account() for running in list(_daemons) if running._test == here]
    raise AssertionError("\n".join([f"not within {timeout} s: {what or condition}", *accounts]))


@contextlib.contextmanager
def daemon(
    folder: Path, config: str, *, metrics: str = "", port: int = 0, within: Sequence[str] = ()
) -> Iterator[Running]:
    """Runs `config` (with a metrics port added) until the block ends; kills what is left.

    `within` is a command that replaces itself with the one that follows it: env, unshare, nsenter.
    """
    path, log = folder / "streamd.yaml", folder / "log"
    path.write_text(f"metrics: {{listen: '127.0.0.1:{port}', {metrics}}}\n" + config)
    with log.open("w") as out:
        process = subprocess.Popen([*within, sys.executable, "-m", "streamd", "run", str(path)], stderr=out, text=True)
    running = Running(process, log, path)
    try:
        until(lambda: process.poll() is not None or running.port, 60, "the daemon starts")
        yield running
    finally:
        process.kill()
        process.wait()
