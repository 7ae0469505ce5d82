"""Real brokers for the tests: killed, stalled and started again on the same port. And clients that listen to them."""

from __future__ import annotations

import contextlib
import getpass
import json
import shutil
import signal
import socket
import subprocess
import threading
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import paho.mqtt.client as mqtt
import pytest
from paho.mqtt.enums import CallbackAPIVersion

from tests.events.journals import until


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def reachable(port: int) -> bool:
    """Whether somebody listens on the port."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 0.2):
        return True
    return False


class Server:
    """A server process on one port.

    Args:
        command: how to start it.
        port: where it listens.
        log: what it prints.
    """

    def __init__(self, command: list[str], port: int, log: Path) -> None:
        self.command, self.port, self.log = command, port, log
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Starts it and waits until it listens."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(self.command, stdout=log, stderr=log)
        process = self._process
        until(lambda: reachable(self.port) or process.poll() is not None, 20)
        assert process.poll() is None, self.log.read_text()

    def signal(self, number: signal.Signals) -> None:
        """Sends a signal: SIGSTOP stalls it, SIGCONT lets it go on."""
        assert self._process is not None
        self._process.send_signal(number)

    def kill(self) -> None:
        """As a crash would. Idempotent."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(10)
            self._process = None


class Gate:
    """Passes connections on to a port while it is open; refuses them while it is closed.

    A broker that is killed forgets who had subscribed. So that a test can tell what the broker lost from what a sink
    lost, listeners connect directly, and sinks through a gate that opens when the listeners are back.

    Args:
        port: where connections go.
    """

    def __init__(self, port: int) -> None:
        self._target, self.port = port, free_port()
        self._server: socket.socket | None = None

    def open(self) -> None:
        """Lets connections in from now on."""
        self._server = socket.create_server(("127.0.0.1", self.port))
        threading.Thread(target=self._accept, args=(self._server,), daemon=True).start()

    def close(self) -> None:
        """Lets no more connections in; those that are open stay. Idempotent."""
        if self._server is not None:
            self._server.shutdown(socket.SHUT_RDWR)
            self._server.close()
            self._server = None

    def _accept(self, server: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = server.accept()
                try:
                    far = socket.create_connection(("127.0.0.1", self._target), 5)
                except OSError:
                    near.close()
                    continue
                far.settimeout(None)
                for one, other in ((near, far), (far, near)):
                    threading.Thread(target=self._pass_on, args=(one, other), daemon=True).start()

    @staticmethod
    def _pass_on(one: socket.socket, other: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := one.recv(1 << 16):
                other.sendall(data)
        for each in (one, other):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)


def executable(name: str, package: str) -> str:
    """The path of a server's program; the test fails where CI should have installed it."""
    found = shutil.which(name) or shutil.which(name, path="/usr/sbin")
    if found is None:
        pytest.skip(f"needs {name} (apt install {package})")
    return found


@contextlib.contextmanager
def mosquitto(folder: Path, *more: str, anonymous: bool = True) -> Iterator[Server]:
    """A broker that keeps retained messages across a kill; `more` are lines of its configuration."""
    port = free_port()
    lines = [
        f"allow_anonymous {str(anonymous).lower()}", "persistence true", f"persistence_location {folder}/",
        f"user {getpass.getuser()}", "autosave_interval 1", "autosave_on_changes true", "max_queued_messages 100000",
        *more,
    ]  # fmt: skip
    if not any(line.startswith("listener ") for line in more):
        lines.insert(0, f"listener {port} 127.0.0.1")
    else:
        port = int(next(line for line in more if line.startswith("listener ")).split()[1])
    config = folder / "mosquitto.conf"
    config.write_text("\n".join(lines) + "\n")
    server = Server([executable("mosquitto", "mosquitto"), "-c", str(config)], port, folder / "mosquitto.log")
    server.start()
    try:
        yield server
    finally:
        server.kill()


def certificate(folder: Path, name: str) -> Path:
    """A new certificate with its key in one file."""
    both = folder / f"{name}.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", f"/CN={name}",
         "-addext", f"subjectAltName=DNS:{name},IP:127.0.0.1", "-keyout", both, "-out", f"{both}.crt"],
        check=True, capture_output=True,
    )  # fmt: skip
    both.write_bytes(both.read_bytes() + Path(f"{both}.crt").read_bytes())
    return both


class Listener:
    """A real MQTT client that connects again when the broker is back.

    Args:
        port: of the broker.
        filters: what it subscribes to.
        qos: of the subscriptions. At 0 the broker has written every message before it acknowledges it to its sender.
    """

    def __init__(self, port: int, *filters: str, qos: int = 1) -> None:
        self._qos = qos
        self.messages: list[tuple[str, bytes, bool]] = []
        """Topic, payload, whether the broker had kept it."""
        self._filters = filters
        self._ready = threading.Event()
        self.client = mqtt.Client(CallbackAPIVersion.VERSION2, f"listener-{id(self)}", clean_session=False)
        self.client.on_message = self._take
        self.client.on_connect = self._subscribe
        self.client.on_subscribe = lambda *_: self._ready.set()
        self.client.on_disconnect = lambda *_: self._ready.clear()
        self.client.reconnect_delay_set(1, 1)
        self.client.connect("127.0.0.1", port)
        self.client.loop_start()
        assert self._ready.wait(10)

    def _subscribe(self, client: Any, *_: Any) -> None:
        client.subscribe([(each, self._qos) for each in self._filters])

    def wait_subscribed(self) -> None:
        """Waits until it has subscribed again after the broker's end."""
        assert self._ready.wait(20)

    def _take(self, _client: Any, _data: Any, message: mqtt.MQTTMessage) -> None:
        self.messages.append((message.topic, bytes(message.payload), message.retain))

    def of(self, suffix: str) -> list[bytes]:
        """Payloads of topics with this end."""
        return [payload for topic, payload, _ in list(self.messages) if topic.endswith(suffix)]

    def last(self) -> dict[str, bytes]:
        """The last payload of each topic."""
        return {topic: payload for topic, payload, _ in list(self.messages)}

    def events(self) -> list[dict[str, Any]]:
        """Events as they arrived, duplicates and all."""
        return [json.loads(payload) for payload in self.of("/events")]

    def close(self) -> None:
        """Leaves."""
        self.client.disconnect()
        self.client.loop_stop()


def in_order(events: list[dict[str, Any]]) -> dict[str, list[int]]:
    """`event_seq` of each stream's events in the order of their first arrival.

    A repeated delivery has to be the very same event.
    """
    seen: dict[str, dict[str, Any]] = {}
    found: dict[str, list[int]] = defaultdict(list)
    for event in events:
        if (known := seen.get(event["id"])) is not None:
            assert known == event, "a duplicate is the same event"
            continue
        seen[event["id"]] = event
        found[event["data"]["stream"]].append(event["data"]["event_seq"])
    return dict(found)


@contextlib.contextmanager
def nats_server(folder: Path, *more: str, jetstream: bool = True) -> Iterator[Server]:
    """A NATS server with JetStream in files; `more` are lines of its configuration."""
    port = free_port()
    store = f'jetstream {{ store_dir: "{folder}/jetstream" }}' if jetstream else ""
    config = folder / "nats.conf"
    config.write_text("\n".join([f"listen: 127.0.0.1:{port}", store, *more]) + "\n")
    server = Server([executable("nats-server", "nats-server"), "-c", str(config)], port, folder / "nats.log")
    server.start()
    try:
        yield server
    finally:
        server.kill()


@contextlib.contextmanager
def redis_server(folder: Path, *more: str) -> Iterator[Server]:
    """A Redis server that syncs every write to its file; `more` are lines of its configuration, `{port}` in them its
    port."""
    port = free_port()
    lines = ("bind 127.0.0.1", f"port {port}", f"dir {folder}", "appendonly yes", "appendfsync always", 'save ""')
    config = folder / "redis.conf"
    config.write_text("\n".join([*lines, *(line.replace("{port}", str(port)) for line in more)]) + "\n")
    server = Server([executable("redis-server", "redis-server"), str(config)], port, folder / "redis.log")
    server.start()
    try:
        yield server
    finally:
        server.kill()
