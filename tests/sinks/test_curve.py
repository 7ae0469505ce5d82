"""CURVE with real sockets: listed clients hear everything, strangers nothing."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
import zmq

from streamd.cli import main
from streamd.cli.watch import Connection
from streamd.config.loader import load
from streamd.errors import ConfigError, StreamdError
from streamd.sinks.curve import Clients, CurveSettings, new_pair, public_of, read_keys, secure_client
from streamd.sinks.message import decode
from streamd.sinks.zmq import MAX_SUBSCRIPTION_BYTES, ZmqSettings, ZmqSink
from streamd.testing.sending import Sender
from streamd.types import StreamCounts
from tests.behaviour.daemon import until
from tests.frames import status

SERVER = new_pair()
CLIENT = new_pair()
STRANGER = new_pair()


def settings(clients: Any = (CLIENT[0],), endpoint: str = "tcp://127.0.0.1:*", **more: Any) -> ZmqSettings:
    where = more or {"bind": endpoint}
    return ZmqSettings(**where, linger_s=0, curve=CurveSettings(secret_key=SERVER[1], clients=clients))


@contextlib.contextmanager
def publishing(options: ZmqSettings) -> Iterator[Sender]:
    """A sink that sends a status and looks around twenty times a second, as its thread would."""
    sink = Sender(ZmqSink(options))
    sink.open()
    over = threading.Event()

    def run() -> None:
        while not over.wait(0.05):
            sink.poll()
            sink.status(status("a"), StreamCounts())
        sink.close()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield sink
    finally:
        over.set()
        thread.join()


@contextlib.contextmanager
def listening(
    endpoint: str, server: str | None = SERVER[0], pair: tuple[str, str] | None = CLIENT, *, binds: bool = False
) -> Iterator[Any]:
    context = zmq.Context()
    client = context.socket(zmq.SUB)
    client.subscribe(b"")
    if server is not None and pair is not None:
        secure_client(client, server, pair[1])
    client.bind(endpoint) if binds else client.connect(endpoint)
    try:
        yield client
    finally:
        context.destroy(linger=0)


def hears(client: Any, timeout_s: float = 5.0) -> bool:
    """Whether anything at all comes."""
    if not client.poll(int(timeout_s * 1000)):
        return False
    return bool(decode(client.recv_multipart()))


def heard(connection: Connection) -> bool:
    connection.look()
    return hears(connection.socket, 0.2)


NOTHING_S = 1.0
"""Twenty messages' time."""


@pytest.mark.parametrize("endpoint", ["tcp://127.0.0.1:*", "ipc"])
def test_a_listed_client_hears_and_a_stranger_does_not(endpoint: str, tmp_path: Path) -> None:
    if endpoint == "ipc":
        endpoint = f"ipc://{tmp_path}/z"
    with publishing(settings(endpoint=endpoint)) as sink, contextlib.ExitStack() as stack:
        at = sink.endpoint
        listed = stack.enter_context(listening(at))
        strangers = {
            "key not listed": stack.enter_context(listening(at, pair=STRANGER)),
            "no key": stack.enter_context(listening(at, None)),
            "wrong server key": stack.enter_context(listening(at, STRANGER[0])),
            "its public key for another's": stack.enter_context(listening(at, pair=(CLIENT[0], STRANGER[1]))),
        }
        assert hears(listed)
        started = time.monotonic()
        while time.monotonic() - started < NOTHING_S:
            assert hears(listed)
        heard = [name for name, client in strangers.items() if client.poll(0)]
        assert heard == []


def test_nobody_reads_it_on_the_wire() -> None:
    """A plain relay between sink and client sees no word of a message."""
    seen = bytearray()
    with contextlib.ExitStack() as stack:
        sink = stack.enter_context(publishing(settings()))
        port = stack.enter_context(relay(int(sink.endpoint.rpartition(":")[2]), seen))
        assert hears(stack.enter_context(listening(f"tcp://127.0.0.1:{port}")))
    assert b"CURVE" in seen
    assert b"streamd/1/" not in seen
    assert b"boot_id" not in seen


@contextlib.contextmanager
def relay(to: int, seen: bytearray) -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def copy(one: Any, other: Any) -> None:
            with contextlib.suppress(OSError):
                while data := one.recv(65_536):
                    seen.extend(data)
                    other.sendall(data)

        def run() -> None:
            near, _ = server.accept()
            with near, socket.create_connection(("127.0.0.1", to)) as far:
                back = threading.Thread(target=copy, args=(far, near), daemon=True)
                back.start()
                copy(near, far)

        threading.Thread(target=run, daemon=True).start()
        yield server.getsockname()[1]


def test_it_is_the_server_also_where_the_subscriber_binds(tmp_path: Path) -> None:
    for pair, expected in ((CLIENT, True), (STRANGER, False)):
        endpoint = f"ipc://{tmp_path}/{expected}"
        with listening(endpoint, pair=pair, binds=True) as client, publishing(settings(connect=endpoint)):
            assert hears(client, 5.0 if expected else NOTHING_S) is expected


def test_any_client_that_knows_the_servers_key() -> None:
    with publishing(settings("any")) as sink:
        with listening(sink.endpoint, pair=STRANGER) as client:
            assert hears(client)
        with listening(sink.endpoint, None) as client:
            assert not hears(client, NOTHING_S)


def test_a_client_that_was_there_before_hears_the_next_daemon() -> None:
    with publishing(settings()) as first:
        endpoint = first.endpoint
        context = zmq.Context()
        waiting = context.socket(zmq.SUB)
        waiting.subscribe(b"")
        secure_client(waiting, SERVER[0], CLIENT[1])
        waiting.connect(endpoint)
        assert hears(waiting)
    while waiting.poll(200):
        waiting.recv_multipart()
    with publishing(settings(endpoint=endpoint)):
        assert hears(waiting, 10)
    context.destroy(linger=0)


def test_the_list_of_clients_may_change_while_it_runs(tmp_path: Path) -> None:
    file = tmp_path / "clients"
    file.write_text(f"# who may listen\n\n{STRANGER[0]} somebody else\n")
    with publishing(settings(str(file))) as sink:
        connection = Connection(sink.endpoint, None, SERVER[0], CLIENT[1])
        try:
            assert not hears(connection.socket, NOTHING_S)
            connection.look()
            assert "does not know this client" in connection.problem
            file.write_text(f"{CLIENT[0]}\n")
            until(lambda: heard(connection), 10)
            connection.look()
            assert connection.problem == ""
        finally:
            connection.close()
        file.write_text("nonsense\n")
        with listening(sink.endpoint) as client:
            assert hears(client)  # the last good list
        file.write_text(f"{STRANGER[0]}\n")
        with listening(sink.endpoint) as client:
            assert not hears(client, NOTHING_S)


def test_nothing_is_left_when_it_closes() -> None:
    files, threads = len(os.listdir("/proc/self/fd")), threading.active_count()
    for _ in range(10):
        with publishing(settings()) as sink, listening(sink.endpoint) as client:
            assert hears(client)
    assert threading.active_count() == threads
    assert len(os.listdir("/proc/self/fd")) <= files


def test_a_subscriber_cannot_make_the_sink_keep_much() -> None:
    with publishing(settings("any")) as sink, listening(sink.endpoint) as client:
        assert hears(client)
        client.subscribe(b"x" * (MAX_SUBSCRIPTION_BYTES + 1))
        time.sleep(0.3)
        while client.poll(0):
            client.recv_multipart()
        assert not hears(client, NOTHING_S)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"server_key": SERVER[0], "secret_key": STRANGER[1]}, "the daemon does not know this client's key"),
        ({"server_key": STRANGER[0], "secret_key": CLIENT[1]}, "--server-key is not this daemon's key"),
        ({}, "the sink is encrypted; give --server-key"),
        ({"server_key": SERVER[0], "secret_key": CLIENT[1]}, ""),
    ],
)
def test_watch_tells_why_nothing_comes(options: dict[str, Any], expected: str) -> None:
    with publishing(settings()) as sink:
        connection = Connection(sink.endpoint, **options)
        try:
            deadline = time.monotonic() + (10 if expected else 1)
            while time.monotonic() < deadline and not (connection.problem and expected):
                connection.look()
                time.sleep(0.05)
            assert expected in connection.problem
            assert bool(connection.problem) is bool(expected)
            assert hears(connection.socket, 2 if not expected else NOTHING_S) is not bool(expected)
        finally:
            connection.close()


def test_a_secret_key_stands_in_no_configuration(tmp_path: Path) -> None:
    (tmp_path / "server.key").write_text(f"{SERVER[1]}\n")
    (tmp_path / "clients").write_text(f"{CLIENT[0]}\n")

    def written(key: str, clients: str = "clients") -> Path:
        path = tmp_path / "c.yaml"
        path.write_text(
            "model: {path: m.onnx}\nstreams: [{id: a, url: x.mp4}]\n"
            f'sinks: [{{kind: zmq, bind: "tcp://127.0.0.1:*", curve: {{secret_key: "{key}", clients: {clients}}}}}]\n'
        )
        return path

    loaded = load(written("${file:server.key}"), {})
    (sink,) = loaded.config.sinks
    assert isinstance(sink, ZmqSettings)
    assert sink.curve is not None
    assert sink.curve.clients == str(tmp_path / "clients")
    assert SERVER[1] in loaded.secrets
    assert SERVER[1] not in repr(loaded.config) + loaded.config.model_dump_json()
    for key in (SERVER[1].replace("\\", ""), "${NOPE:-" + SERVER[1].replace("}", "x") + "}"):
        with pytest.raises(
            ConfigError, match=r"c\.yaml:3: sinks\[0\]\.curve\.secret_key: must not be written in the file"
        ) as e:
            load(written(key.replace("$", "$$") if key == SERVER[1] else key), {})
        assert SERVER[1] not in str(e.value)
    with pytest.raises(ConfigError, match=r"sinks\[0\]\.curve\.clients.*expected a public key of 40 characters"):
        load(written("${file:server.key}", "[short]"), {})


def test_files_of_keys_and_what_is_wrong_with_them(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("abc\n")
    with pytest.raises(ConfigError, match=rf"zmq: {file}:1: expected a public key of 40 characters"):
        read_keys(file, "zmq")
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        Clients(str(tmp_path / "none"))
    with pytest.raises(ConfigError, match="larger than"):
        file.write_text("#" * (1 << 20) + "\n")
        read_keys(file, "zmq")
    for bad in ("geheim", "%" * 40):
        with pytest.raises(ConfigError, match=r"not a valid key|expected a key") as caught:
            public_of(bad, "the key")
        assert bad not in str(caught.value)
    with pytest.raises(StreamdError, match=r"curve\.secret_key"):
        ZmqSink(ZmqSettings(bind="tcp://127.0.0.1:*", curve=CurveSettings(secret_key="short", clients="any"))).open()


def test_a_libzmq_without_curve(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zmq, "has", lambda _: False)
    for use in (new_pair, ZmqSink(settings()).open):
        with pytest.raises(ConfigError, match="was built without CURVE"):
            use()


def test_a_new_public_key_can_be_pasted_anywhere(tmp_path: Path) -> None:
    """One of 185 random keys has a `$$`, which stands for one dollar in a configuration, and is then too short."""
    keys = [new_pair()[0] for _ in range(200)]
    text = "block:\n" + "".join(f"  - {key}\n" for key in keys) + f"flow: [{', '.join(keys)}]\n"
    assert yaml.safe_load(text) == {"block": keys, "flow": keys}
    assert [key for key in keys if "$" in key] == []
    path = tmp_path / "clients"
    path.write_text("\n".join(keys))
    assert read_keys(path, "clients") == set(keys)


def test_a_key_with_two_dollars_is_told_how_to_write_it(tmp_path: Path) -> None:
    key = "9OR>WOqQ{R4)$$HUqA}(BdZH<3)JB?sV!pwyJP$L"
    path = tmp_path / "c.yaml"
    (tmp_path / "key").write_text(SERVER[1])
    (tmp_path / "key").chmod(0o600)
    text = (
        "model: {path: m}\nstreams: [{id: a, url: x}]\nsinks:\n"
        "  - {kind: zmq, bind: 'tcp://*:0', curve: {secret_key: '${file:key}', clients: ['KEY']}}\n"
    )
    path.write_text(text.replace("KEY", key))
    with pytest.raises(ConfigError, match=r"each \$ in it is written \$\$"):
        load(path)
    path.write_text(text.replace("KEY", key.replace("$", "$$")))
    sink = load(path).config.sinks[0]
    assert isinstance(sink, ZmqSettings)
    assert sink.curve is not None
    assert sink.curve.clients == (key,)


def test_keygen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    secret, public = tmp_path / "server.key", tmp_path / "server.pub"

    def keygen(*arguments: str | Path) -> tuple[int, str, str]:
        return main(["keygen", *map(str, arguments)]), *capsys.readouterr()

    code, out, err = keygen(tmp_path / "server")
    assert (code, err) == (0, f"secret key: {secret} (keep it private); public key: {public}\n")
    assert stat.S_IMODE(secret.stat().st_mode) == 0o600
    assert stat.S_IMODE(public.stat().st_mode) == 0o644
    assert public_of(secret.read_text().strip(), "it") == out.strip()
    assert read_keys(public, "it") == {out.strip()}
    before = secret.read_text()
    assert before.strip() not in out
    code, _, err = keygen(tmp_path / "server")
    assert (code, secret.read_text()) == (2, before)
    assert err == f"streamd: keygen: {secret} already exists; choose another name, or give --force to overwrite it\n"
    secret.unlink()
    assert keygen(tmp_path / "server")[0] == 2  # the public one is still there
    assert keygen(tmp_path / "server", "--force")[0] == 0
    assert secret.read_text() != before
    assert "No such file" in keygen(tmp_path / "none" / "x")[2]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["server.key", "server.pub"]
