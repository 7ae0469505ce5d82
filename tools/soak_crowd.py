"""What surrounds a daemon in a soak besides its cameras: ZeroMQ peers that take all they can, clients that scrape
without a pause, a reader of its log that stalls, and programs that rotate or remove its files."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import random
import select
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from soak_watch import Metrics

from tests.behaviour.daemon import Running

ROOT = Path(__file__).resolve().parent.parent
PIPE_BYTES = 4096
"""Of the log's pipe: the daemon soon has to wait for a reader that stalls."""
FRESH_S = 5.0
MOST_PEERS, MOST_SCRAPERS = 4, 2
_SET_PIPE_SIZE = 1031
"""F_SETPIPE_SZ, which Python 3.10 has no name for in all builds."""
PEER = """
import contextlib, os, sys, time
from functools import partial
from tests.sinks.zmtp import RawPeer, frame
kind, endpoint = sys.argv[1:]
RawPeer = partial(RawPeer, source=f"127.0.0.{2 + os.getpid() % 250}")  # a host each: one of them is soon refused
peers = []
while True:
    with contextlib.suppress(OSError):
        if kind == "silent" and len(peers) < 300:
            peers.append(RawPeer(endpoint, handshake=False))
            continue
        peer = RawPeer(endpoint)
        while kind == "topics":
            peer.subscribe(*[b"%d" % time.monotonic_ns() for _ in range(50)])
        while kind == "again":
            peer.subscribe(b"streamd/")
            peer.subscribe(b"streamd/", cancel=True)
        while kind == "endless":
            peer.send(frame(b"x" * 1000, 1) * 10)
    time.sleep(0.2)
"""
SCRAPER = """
import sys, threading, time, urllib.error, urllib.request
def scrape(path):
    while True:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{sys.argv[1]}{path}", timeout=5).read()
        except OSError:
            time.sleep(0.05)
for path in ("/metrics", "/metrics", "/state", "/readyz", "/rules", "/events?limit=5"):
    threading.Thread(target=scrape, args=(path,)).start()
"""


def free_port() -> int:
    """A TCP port that nothing uses now."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


class LogPipe:
    """A named pipe for the daemon's standard error, written to a file by a reader that can stall.

    Args:
        folder: where the pipe is made.
        log: the file.
    """

    def __init__(self, folder: Path, log: Path) -> None:
        self.stalled = threading.Event()
        self._pipe, self._log = folder / "log.pipe", log
        os.mkfifo(self._pipe)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="log", daemon=True)
        self._thread.start()

    @property
    def within(self) -> tuple[str, ...]:
        """A command that replaces itself with the one that follows it, whose standard error is the pipe."""
        return ("sh", "-c", 'exec "$@" 2> "$0"', str(self._pipe))

    def _run(self) -> None:
        descriptor = os.open(self._pipe, os.O_RDONLY)  # waits for the daemon
        fcntl.fcntl(descriptor, _SET_PIPE_SIZE, PIPE_BYTES)
        try:
            with self._log.open("ab", buffering=0) as file:
                while True:
                    if self.stalled.is_set() and not self._stop.is_set():
                        time.sleep(0.05)
                        continue
                    if not select.select([descriptor], [], [], 0.1)[0]:
                        continue
                    data = os.read(descriptor, 65_536)
                    if not data:
                        return
                    file.write(data)
        finally:
            os.close(descriptor)

    def close(self) -> None:
        """Reads what is left; the daemon has ended."""
        self._stop.set()
        with contextlib.suppress(OSError):
            os.close(os.open(self._pipe, os.O_WRONLY | os.O_NONBLOCK))  # for a daemon that has never opened it
        self._thread.join(10)


class Crowd:
    """Starts and ends what bothers the daemon.

    Args:
        folder: of the daemon's files.
        chance: draws what happens.
    """

    def __init__(self, folder: Path, chance: random.Random) -> None:
        self._random = chance
        self._file = folder / "out.jsonl"
        self._endpoint = f"tcp://127.0.0.1:{free_port()}"
        self.pipe = LogPipe(folder, folder / "log")
        self.sinks = (
            f"{{kind: zmq, name: open, bind: '{self._endpoint}', hwm: 500}}, "
            f"{{kind: jsonl, path: '{self._file}', rotate_mb: 1, keep: 3, status: true}}"
        )
        """Further sinks for the configuration."""
        self._children: list[tuple[str, subprocess.Popen[bytes]]] = []
        self.done: Counter[str] = Counter()
        self.wrong: list[str] = []

    @property
    def actions(self) -> tuple[Callable[[Running], None], ...]:
        """What may happen during the minutes of trouble."""
        return (self._peer, self._scraper, self._stall, self._rotate)

    def _start(self, what: str, most: int, script: str, *arguments: str) -> None:
        kind = what.split()[0]
        same = [child for child in self._children if child[0] == kind]
        if len(same) >= most:
            self._end(same[0])
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        child = subprocess.Popen([sys.executable, "-c", script, *arguments], env=environment)
        self._children.append((kind, child))
        self.done[what] += 1

    def _end(self, child: tuple[str, subprocess.Popen[bytes]]) -> None:
        self._children.remove(child)
        child[1].kill()
        child[1].wait()

    def _peer(self, _: Running) -> None:
        kind = self._random.choice(("silent", "topics", "again", "endless"))
        self._start(f"peer {kind}", MOST_PEERS, PEER, kind, self._endpoint)

    def _scraper(self, running: Running) -> None:
        self._start("scraper", MOST_SCRAPERS, SCRAPER, str(running.port))

    def _stall(self, _: Running) -> None:
        stalled = self.pipe.stalled
        self.done["log read" if stalled.is_set() else "log stalled"] += 1
        (stalled.clear if stalled.is_set() else stalled.set)()

    def _rotate(self, _: Running) -> None:
        """As logrotate, with and without `copytruncate`, or a careless hand."""
        doing = self._random.choice(("renamed", "truncated", "removed"))
        with contextlib.suppress(FileNotFoundError):
            if doing == "renamed":
                self._file.rename(self._file.with_suffix(".old"))
            elif doing == "truncated":
                shutil.copy(self._file, self._file.with_suffix(".old"))
                os.truncate(self._file, 0)
            else:
                self._file.unlink()
            self.done[f"file {doing}"] += 1

    def rest(self) -> None:
        """Everybody leaves; the log is read."""
        self.pipe.stalled.clear()
        for child in list(self._children):
            self._end(child)

    def look(self, running: Running, minute: int) -> None:
        """After a rest: the file is written, and nobody is connected any more."""
        where = f"at the end of minute {minute}"
        left = running.value("streamd_sink_subscribers", sink="open")
        if left:
            self.wrong.append(f"{left:g} peers are still connected {where}")
        try:
            data = self._file.read_bytes()
            age = time.time() - self._file.stat().st_mtime
        except OSError as error:
            self.wrong.append(f"{self._file.name}: {error.strerror} {where}")
            return
        if age > FRESH_S:
            self.wrong.append(f"{self._file.name}: last written {age:.0f} s ago {where}")
        if b"\0" in data:
            self.wrong.append(f"{self._file.name}: NUL bytes {where}")
        broken = 0
        for line in data.splitlines()[:-1]:
            try:
                json.loads(line)
            except ValueError:
                broken += 1
        if broken:
            self.wrong.append(f"{self._file.name}: {broken} broken lines {where}")

    def told(self, metrics: Metrics) -> str:
        """What the daemon tells of it."""
        refused = {
            dict(labels)["reason"]: value
            for (name, labels), value in metrics.items()
            if name == "streamd_sink_refused_total" and dict(labels)["sink"] == "open"
        }
        lost = sum(value for (name, _), value in metrics.items() if name == "streamd_log_lines_lost_total")
        told = ", ".join(f"{value:g} {reason}" for reason, value in sorted(refused.items()) if value)
        return f"peers refused: {told or 'none'}; log lines lost: {lost:g}"

    def close(self) -> None:
        """Ends what this started."""
        self.rest()
        self.pipe.close()
