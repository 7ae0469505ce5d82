"""The command line as its users meet it: separate processes, real models, exit codes."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pty
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jsonschema
import msgspec
import pytest
from rich.console import Console

from streamd.cli import parser
from streamd.cli.board import MAX_ROWS, Board, table
from streamd.errors import SourceError
from streamd.sinks.message import Detection, DetectionsMessage, Latency, Model
from tests import marked
from tests.cli.commands import config, null, one_message, streamd
from tests.clips import write_clip


@pytest.mark.parametrize(
    ("text", "code", "message"),
    [
        ("model: {path: m.onnx}\nstreams: []\n", 2, "streams: expected at least one stream"),
        ("model: {path: none.onnx}\nmetrics: {listen: null}\nstreams: [{id: a, url: x.mp4}]", 3, "does not exist"),
        (null("[{id: a, url: none.mp4}]"), 4, ""),
        (null(more="sinks: [{kind: jsonl, path: /nonexistent/x}]"), 6, "cannot open /nonexistent/x"),
    ],
    ids=["config", "model", "stream", "sink"],
)
def test_run_ends_with_the_documented_code(tmp_path: Path, text: str, code: int, message: str) -> None:
    done = streamd("run", config(tmp_path, text))
    assert done.returncode == code, done.stderr
    if message:
        assert message in one_message(done.stderr)
    else:
        assert "not_found" in done.stderr


def test_a_port_in_use(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        for text in (
            null().replace("listen: null", f"listen: '{address}'"),
            null(more=f"sinks: [{{kind: zmq, bind: 'tcp://{address}'}}]"),
        ):
            done = streamd("run", config(tmp_path, text))
            assert done.returncode == 6
            assert address in one_message(done.stderr)


def test_a_failing_backend_ends_the_process_with_5(tmp_path: Path) -> None:
    text = null("[{id: a, kind: synthetic, fps: 100}]").replace("kind: 'null'", "kind: 'null', fail_after: 5")
    done = streamd("run", config(tmp_path, text))
    assert done.returncode == 5
    assert "told to fail" in done.stderr


def test_run_for_so_many_seconds(tmp_path: Path) -> None:
    started = time.monotonic()
    done = streamd("run", config(tmp_path, null("[{id: a, kind: synthetic, fps: 50}]")), "--for", "1")
    assert done.returncode == 0
    assert time.monotonic() - started < 8


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_drains_and_a_second_one_leaves_at_once(tmp_path: Path, number: signal.Signals) -> None:
    out = tmp_path / "o.jsonl"
    text = null("[{id: a, kind: synthetic, fps: 100}]", f"sinks: [{{kind: jsonl, path: {out}}}]")
    path = config(tmp_path, text)

    def start(to: Path) -> subprocess.Popen[str]:
        process = subprocess.Popen([sys.executable, "-m", "streamd", "run", to], stderr=subprocess.PIPE, text=True)
        deadline = time.monotonic() + 20
        while not (out.exists() and out.stat().st_size) and time.monotonic() < deadline:
            time.sleep(0.05)
        return process

    process = start(path)
    process.send_signal(number)
    _, log = process.communicate(timeout=8)
    assert process.returncode == 0, log
    seqs = [json.loads(line)["seq"] for line in out.read_text().splitlines()]
    assert seqs == list(range(len(seqs)))
    summary = next(json.loads(line) for line in log.splitlines() if "stream summary" in line)
    assert summary["received"] - sum((summary.get("dropped") or {}).values()) == summary["published"] == len(seqs)

    out.unlink()
    hung = text.replace("kind: 'null'", "kind: 'null', hang_after: 20") + "drain_s: 60\n"
    process = start(config(tmp_path, hung, "hung.yaml"))
    time.sleep(0.5)
    process.send_signal(number)
    time.sleep(0.5)
    assert process.poll() is None
    process.send_signal(number)
    process.communicate(timeout=5)
    assert process.returncode == 128 + number


def test_a_hang_does_not_outlast_the_drain_limit(tmp_path: Path) -> None:
    text = null("[{id: a, kind: synthetic, fps: 100}]").replace("kind: 'null'", "kind: 'null', hang_after: 3")
    started = time.monotonic()
    done = streamd("run", config(tmp_path, text + "drain_s: 1\n"), "--for", "1")
    assert time.monotonic() - started < 10
    assert "drain timed out" in done.stderr


def test_watch_shows_what_is_published(tmp_path: Path) -> None:
    endpoint = f"ipc://{tmp_path}/z"
    middle = "{name: middle, anchor: center, points: [[0.3, 0.3], [0.7, 0.3], [0.7, 0.7], [0.3, 0.7]]}"
    edge = "{name: edge, points: [[0.1, 0.1], [0.9, 0.1]]}"
    stream = f"[{{id: gate, kind: synthetic, fps: 50, zones: [{middle}], lines: [{edge}]}}]"
    text = null(stream, f"events: {{state_dir: state}}\nsinks: [{{kind: zmq, bind: '{endpoint}'}}]")
    daemon = subprocess.Popen(
        [sys.executable, "-m", "streamd", "run", str(config(tmp_path, text)), "--for", "60"], stderr=subprocess.DEVNULL
    )
    try:
        done = streamd("watch", endpoint, "--for", "4", "--json")
        assert done.returncode == 0, done.stderr
        last = json.loads(done.stdout.splitlines()[-1])["streams"][0]
        assert (last["stream"], last["state"], last["missed"], last["last"]) == ("gate", "LIVE", 0, "1 thing (0.90)")
        assert 40 < last["fps"] < 60
        assert re.fullmatch(r"middle 1, edge (0|\w+ 0, \w+ 0)", last["counts"])
        table = streamd("watch", endpoint, "--for", "2")
        assert "gate" in table.stdout
        assert "| middle 1, edge" in table.stdout
    finally:
        daemon.terminate()
        assert daemon.wait(10) == 0


def test_watch_obeys_no_stranger(tmp_path: Path) -> None:
    """A publisher that is none of ours: escape sequences, and names without end."""
    board = Board()
    kind = DetectionsMessage
    one = kind(
        schema=1, boot_id="b", stream="\x1b[2Jcam", epoch=0, seq=0, pts_ns=None, captured_at=0.0, clock="arrival",
        published_at=0.0, width=1, height=1, model=Model("m", ""), latency_ms=Latency(0, 0, 0, 0, 0, 0), dropped=0,
        detections=[Detection(0, "[red]\x07car" + "x" * 500, 0.5, (0, 0, 1, 1))],
    )  # fmt: skip
    board.add(one, 0.0)
    (row,) = board.rows.values()
    assert row.stream == "?[2Jcam"
    assert "\x07" not in row.last
    assert len(row.last) <= 200
    assert row.counts == ""
    zone, line = {"occupancy": None, "stale": True}, {"crossings": {"in": {"car": 2, "person": 3}, "out": {}}}
    for counts, shown in (
        ({"zones": {"\x1b[2Jhall": zone}, "lines": {"[b]gate": line}}, "?[2Jhall ? (stale), [b]gate in 5, out 0"),
        ({"zones": {"hall": 5}, "lines": {}}, ""),
        ({"zones": []}, ""),
        ({"zones": {}, "lines": {"gate": {"crossings": {"in": {"car": "x"}}}}}, ""),
    ):
        board.add(msgspec.structs.replace(one, counts=counts), 0.0)
        assert row.counts == shown
    board.add(msgspec.structs.replace(one, counts={"zones": {"[b]hall": zone}, "lines": {}}), 0.0)
    for number in range(MAX_ROWS + 10):
        board.add(msgspec.structs.replace(one, stream=f"s{number}"), 0.0)
    assert (len(board.rows), board.bad) == (MAX_ROWS, 11)
    console = Console(file=io.StringIO(), width=250)
    console.print(table(board, "tcp://x", width=250))
    assert "?[2Jcam" in console.file.getvalue()  # type: ignore[attr-defined]
    assert "\x1b" not in console.file.getvalue()  # type: ignore[attr-defined]
    assert "[b]hall ? (stale)" in console.file.getvalue()  # type: ignore[attr-defined]


def test_watch_says_that_nobody_answers(tmp_path: Path) -> None:
    done = streamd("watch", f"ipc://{tmp_path}/nobody", "--for", "6")
    assert done.stderr.startswith(f"streamd: watch: ipc://{tmp_path}/nobody: no answer yet; is streamd running, with")
    assert (done.returncode, len(done.stderr.splitlines()), done.stdout) == (0, 1, "")


@pytest.mark.parametrize("kind", ["dumb", "unknown"])
def test_watch_on_a_terminal_that_draws_nothing_twice_tells_lines(tmp_path: Path, kind: str) -> None:
    terminal, other = pty.openpty()
    command = [sys.executable, "-m", "streamd", "watch", f"ipc://{tmp_path}/nobody", "--for", "60"]
    process = subprocess.Popen(command, stdout=other, stderr=other, env=os.environ | {"TERM": kind})
    os.close(other)
    shown = b""
    while b"\n" not in shown:
        shown += os.read(terminal, 65536)
    process.kill()
    process.wait(20)
    os.close(terminal)
    assert shown.startswith(b"streamd: watch: ipc://")
    assert b"no answer yet" in shown


def test_watch_leaves_room_for_what_a_terminal_echoes_of_its_end(tmp_path: Path) -> None:
    """`^C` behind a line of the whole width would wrap, and the table be drawn once more a line too low."""
    terminal, other = pty.openpty()
    command = [sys.executable, "-m", "streamd", "watch", f"ipc://{tmp_path}/nobody"]
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "80"}
    process = subprocess.Popen(command, stdout=other, stderr=other, env=environment)
    os.close(other)
    shown = b""
    try:
        while b"last frame" not in shown:
            shown += os.read(terminal, 65536)
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(OSError):  # the terminal's end is an error of its own
            while piece := os.read(terminal, 65536):
                shown += piece
        assert process.wait(20) == 0
    finally:
        process.kill()
        os.close(terminal)
    lines = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode()).replace("\r", "\n").split("\n")
    assert max(map(len, lines)) == 78


def test_watch_refuses_what_is_no_endpoint() -> None:
    done = streamd("watch", "localhost:5555", "--for", "1")
    assert done.returncode == 2
    assert "expected the zmq sink's address" in one_message(done.stderr)


def test_schemas_are_valid_and_hold(tmp_path: Path) -> None:
    schema = json.loads(streamd("schema").stdout)
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate({"model": {"path": "m.onnx"}, "streams": [{"id": "a", "url": "x.mp4"}]}, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"model": {"path": "m.onnx", "x": 1}, "streams": []}, schema)


def test_help_names_every_command_and_a_closed_pipe_is_no_error() -> None:
    done = streamd("--help")
    for command in ("run", "check", "detect", "watch", "schema"):
        assert command in done.stdout
    assert streamd("frobnicate").returncode == 2
    pipe = subprocess.run(
        f"{sys.executable} -m streamd schema | head -c 10", shell=True, capture_output=True, text=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )  # fmt: skip
    assert pipe.stderr == ""


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("command", ["schema", "check {}", "--help"])
def test_output_that_nobody_takes_or_for_which_there_is_no_room(tmp_path: Path, command: str, unbuffered: str) -> None:
    """Written at once, or at the very end of the process."""
    path = config(tmp_path, null())
    run = f"{sys.executable} -m streamd {command.format(path)}"
    environment = os.environ | {"PYTHONUNBUFFERED": unbuffered}
    script = f"{run} | true; echo ${{PIPESTATUS[0]}} >&2"
    pipe = subprocess.run(["bash", "-c", script], capture_output=True, text=True, env=environment)
    assert pipe.stderr == "0\n"
    full = subprocess.run(["bash", "-c", f"{run} > /dev/full"], capture_output=True, text=True, env=environment)
    assert (full.returncode, full.stderr) == (1, "streamd: output cannot be written: No space left on device\n")


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("to", ["| true", "2>&1 | true", "> /dev/full 2>&1"])
@pytest.mark.parametrize(
    ("command", "code"),
    [("check {}", 2), ("inspect /nowhere.onnx", 3), ("check --bogus", 2)],
)
def test_the_exit_code_is_that_of_the_command_whatever_becomes_of_its_output(
    tmp_path: Path, command: str, code: int, to: str, unbuffered: str
) -> None:
    """There is more than one line of it, so that the first one that fails is not the last."""
    path = config(tmp_path, null(more="bogus: 1\nbogus_too: 2"))
    run = f"sleep 0.1; exec {sys.executable} -m streamd {command.format(path)}"
    script = f"(trap '' PIPE; {run}) {to}; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", script], env=os.environ | {"PYTHONUNBUFFERED": unbuffered})
    assert done.returncode == code


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_detect_ends_with_its_reader_and_says_what_it_could_not_read(tmp_path: Path, unbuffered: str) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    video = marked.write_marked(tmp_path / "v.mp4", frames=300)
    run = f"{sys.executable} -m streamd detect --json --model builtin:road6 {tmp_path / 'broken.jpg'} {video}"
    done = subprocess.run(
        ["bash", "-c", f"{run} | head -1; exit ${{PIPESTATUS[0]}}"], capture_output=True, text=True,
        env=os.environ | {"PYTHONUNBUFFERED": unbuffered},
    )  # fmt: skip
    assert "broken.jpg" in done.stderr
    assert done.returncode == SourceError.exit_code
    found = re.search(r"(\d+) frames in", done.stderr)
    assert found is not None
    assert int(found[1]) < 300


def test_messages_for_which_standard_output_has_no_room(tmp_path: Path) -> None:
    path = config(tmp_path, null(more="sinks: [{kind: jsonl, path: '-'}]"))
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "streamd", "run", str(path)], stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert done.returncode == 0, "the daemon goes on, and counts them"
    assert "jsonl sink: cannot write to standard output: No space left on device" in done.stderr


@pytest.mark.parametrize("name", ["", "keys/", ".", "keys/.."])
def test_keys_need_a_name(tmp_path: Path, name: str) -> None:
    (tmp_path / "keys").mkdir()
    done = streamd("keygen", name, cwd=tmp_path)
    told = f"keygen: {name!r} is no name of a file; expected one such as yard or keys/yard"
    if not name:
        told = "name: is empty; expected a value (is a shell variable not set?)"
    assert (done.returncode, one_message(done.stderr)) == (2, f"streamd: {told}")
    assert [path.name for path in tmp_path.rglob("*")] == ["keys"]


def test_evaluate_names_the_option_that_is_out_of_range(tmp_path: Path) -> None:
    done = streamd("evaluate", "x", "--images", tmp_path, "--labels", tmp_path, "--max-det", "0", "--iou", "nan")
    told = "streamd: --iou: expected a finite number; --max-det: expected at least 1, not 0"
    assert (done.returncode, one_message(done.stderr)) == (2, told)


def test_a_verdict_counts_where_nobody_reads_it(tmp_path: Path) -> None:
    path = config(tmp_path, null("[{id: a, url: none.mp4}]"))
    script = f"{sys.executable} -m streamd check {path} | true; echo ${{PIPESTATUS[0]}} >&2"
    environment = os.environ | {"PYTHONUNBUFFERED": ""}
    assert subprocess.run(["bash", "-c", script], capture_output=True, text=True, env=environment).stderr == "2\n"


def test_a_command_that_does_not_exist() -> None:
    done = streamd()
    assert (done.returncode, done.stdout) == (2, "")
    assert "usage: streamd" in done.stderr
    assert "evaluate" in done.stderr
    for given, told in (
        ("chek", "did you mean check?"),
        ("predict", "did you mean detect?"),
        ("yard.yaml", "to run a configuration: streamd run yard.yaml"),
        ("rtsp://u:geheim@h/x.yml", "rtsp://***@h/x.yml: no such command"),
        ("xyz", "expected one of run, demo, check"),
    ):
        done = streamd(given)
        assert (done.returncode, done.stdout) == (2, "")
        assert told in done.stderr
        assert "geheim" not in done.stderr


def test_demo_does_not_overwrite_its_input(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mp4", frames=3, fps=10)
    before = clip.read_bytes()
    done = streamd("demo", clip, "--save", clip)
    assert done.returncode == 2
    assert "is the input itself" in one_message(done.stderr)
    assert clip.read_bytes() == before


def test_an_argument_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    odd = os.fsdecode(b"m\xff.onnx")
    done = streamd("detect", "a.jpg", "--model", odd)
    assert done.returncode == 2
    assert one_message(done.stderr) == "streamd: model: 'm\\udcff.onnx' is not UTF-8 text; rename the file or folder"


@pytest.mark.parametrize(("closed", "workers"), [("<&- >&- 2>&-", 1), ("<&- >&- 2>&-", 2), ("2>&-", 1), ("<&-", 1)])
def test_a_daemon_without_standard_streams(tmp_path: Path, closed: str, workers: int) -> None:
    """What it opens must not get their numbers, or libraries print into it; nor what its workers open."""
    out = tmp_path / "out.jsonl"
    path = config(tmp_path, null(more=f"sinks: [{{kind: jsonl, path: {out}}}]\nworkers: {workers}"))
    done = subprocess.run(
        ["sh", "-c", f'exec "$0" -m streamd run "$1" {closed}', sys.executable, str(path)], timeout=60, check=False
    )
    assert done.returncode == 0
    lines = out.read_text().splitlines()
    assert lines
    assert all(json.loads(line) for line in lines)


@pytest.mark.parametrize("command", [("run", "c.yaml"), ("demo",), ("watch", "tcp://127.0.0.1:1")])
@pytest.mark.parametrize("seconds", ["nan", "inf", "-1", "0", "x"])
def test_an_end_that_never_comes_is_refused(command: tuple[str, ...], seconds: str) -> None:
    with pytest.raises(SystemExit) as caught:
        parser().parse_args([*command, "--for", seconds])
    assert caught.value.code == 2
    assert parser().parse_args([*command, "--for", "1.5"]).seconds == 1.5
