"""The command line as its users meet it: separate processes, real models, exit codes."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import numpy as np
import pytest
from rich.console import Console

from streamd.cli import parser
from streamd.cli.board import MAX_ROWS, Board, table
from streamd.sinks.message import Detection, DetectionsMessage, Latency, Model
from tests.clips import write_clip
from tests.conftest import shared
from tests.engine.onnx_models import constant_output

SMALL = "models/yolov5lite_e_relu_320.onnx"


def streamd(*arguments: str | Path, timeout: float = 60, **kw: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "streamd", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, **kw)


def config(folder: Path, text: str, name: str = "c.yaml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def null(streams: str = "[{id: a, kind: synthetic, fps: 100, count: 20}]", more: str = "") -> str:
    return f"model: {{path: none}}\nengine: {{kind: 'null'}}\nmetrics: {{listen: null}}\nstreams: {streams}\n{more}\n"


def one_message(text: str) -> str:
    """The single line in which the command said what was wrong."""
    lines = [line for line in text.splitlines() if not line.startswith("{")]
    assert len(lines) == 1, text
    assert "Traceback" not in text
    return lines[0]


def test_check_tells_everything_and_says_good(tmp_path: Path) -> None:
    good = config(tmp_path, null())
    done = streamd("check", good)
    assert (done.returncode, done.stdout) == (0, f"{good}: valid: 1 stream, 0 sinks\n")
    bad = config(tmp_path, null("[{id: a}, {id: a b, url: x}]"), "bad.yaml")
    done = streamd("check", bad)
    assert done.returncode == 2
    assert "bad.yaml:4: streams[0].url: is required" in done.stdout
    assert "bad.yaml:4: streams[1].id: expected at most" in done.stdout
    assert done.stderr == ""
    absent = config(tmp_path, null("[{id: a, url: none.mp4}]"), "absent.yaml")
    done = streamd("check", absent)
    assert done.returncode == 2
    assert f"streams[0].url: {tmp_path}/none.mp4 is not a file" in done.stdout


def test_check_finds_everything_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    text = """\
model: {path: none}
engine: {kind: 'null'}
metrics: {listen: 9188}
events: {state_dir: file/state}
streams:
  - {id: gate, url: x.mp4, max_fps: fast}
  - {id: gate, url: none.mp4}
  - {id: yard, url: "rtps://cam/1"}
  - {id: dock, url: "rtsp://cam/2", pace: asap}
  - {id: roof, url: "rtsp://cam/3"}
sinks:
  - {kind: jsonl, path: absent/out.jsonl}
  - {kind: zmq, bind: "ipc://file/z", hwm: 0}
  - {kind: zmq, bind: "ipc:///nonexistent/z"}
"""
    path = config(tmp_path, text)
    done = streamd("check", path)
    assert (done.returncode, done.stderr) == (2, "")
    place, told = str(path), done.stdout
    assert told.splitlines() == [
        f"{place}:3: metrics.listen: expected text; YAML reads this as a number: put it in quotes",
        f"{place}:6: streams[0].id: gate is the id of 2 streams; ids must be unique",
        f"{place}:6: streams[0].max_fps: Input should be a valid number, unable to parse string as a number",
        f"{place}:7: streams[1].id: gate is the id of 2 streams; ids must be unique",
        f"{place}:8: streams[2].url: rtps:// is no protocol that FFmpeg knows; did you mean rtsp?",
        f"{place}:9: streams[3].pace: only files, HLS and HTTP have a pace of their own; remove it",
        f"{place}:13: sinks[1].hwm: Input should be greater than or equal to 1",
        f"{place}: streams[1].url: {tmp_path}/none.mp4 is not a file",
        f"{place}: sinks[0].path: {tmp_path}/absent is not a folder; create it",
        f"{place}: sinks[2].bind: /nonexistent is not a folder; create it",
    ]


def test_check_looks_at_the_places_that_are_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    more = "events: {state_dir: file/state}\nrecorder: {folder: bundles}\nsinks: [{kind: jsonl, path: '.'}]"
    path = config(tmp_path, null(more=more))
    done = streamd("check", path)
    assert done.stdout.splitlines() == [
        f"{path}: sinks[0].path: {tmp_path} is a folder; expected a file",
        f"{path}: events.state_dir: {tmp_path}/file is not a folder; expected one",
    ]
    assert not (tmp_path / "bundles").exists()  # nothing is made


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


def test_detect_images_folder_and_video(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mp4", frames=6, fps=10)
    folder = shared("images/coco_val128/images")
    image = sorted(folder.iterdir())[3]
    saved = tmp_path / "out"
    done = streamd("detect", image, clip, "--model", shared(SMALL), "--head", "yolov5_sigmoid", "--save", saved)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 7
    for word in ("mean", "p50", "p99", "decode", "preprocess", "infer", "postprocess", "frames/s"):
        assert word in done.stderr
    import av
    import cv2

    drawn, original = cv2.imread(str(saved / image.name)), cv2.imread(str(image))
    assert drawn is not None
    assert original is not None
    assert drawn.shape == original.shape
    assert np.abs(drawn.astype(int) - original).max() > 60
    with av.open(str(saved / "clip.mp4")) as container:
        assert container.streams.video[0].average_rate == 10
        assert sum(1 for _ in container.decode(video=0)) == 6


def test_keypoints_keep_to_their_boxes_through_tracks_and_classes(tmp_path: Path) -> None:
    """A weak box of the first class is left out; a sure one of the other class goes to the end with its points."""
    columns = np.zeros((1, 4 + 2 + 2 * 3, 84), np.float32)
    columns[0, :, 3] = [20, 30, 10, 12, 0.1, 0, 20, 30, 0.9, 25, 33, 0.8]
    columns[0, :, 40] = [40, 32, 16, 20, 0, 0.8, 40, 32, 0.7, 44, 28, 0.6]
    metadata = {"task": "pose", "kpt_shape": "[2, 3]", "names": "{0: 'cat', 1: 'dog'}"}
    model = constant_output(tmp_path / "pose.onnx", columns, metadata)
    clip = write_clip(tmp_path / "clip.mp4", frames=6, fps=10)
    saved = tmp_path / "out"
    done = streamd("detect", clip, "--model", model, "--track", "--json", "--save", saved)
    assert done.returncode == 0, done.stderr
    messages = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(messages) == 6
    for message in messages:
        (found,) = message["detections"]
        scale = message["width"] / 64
        left, top = 0, (64 * scale - message["height"]) / 2
        assert found["label"] == "dog"
        want = [[40 * scale - left, 32 * scale - top, 0.7], [44 * scale - left, 28 * scale - top, 0.6]]
        np.testing.assert_allclose(found["keypoints"], want, atol=2)
    assert messages[-1]["detections"][0]["track"]["id"] > 0
    assert (saved / "clip.mp4").stat().st_size > 0


def test_detect_json_is_the_message_and_nothing_else(tmp_path: Path) -> None:
    folder = shared("images/coco_val128/images")
    images = sorted(folder.iterdir())[:3]
    done = streamd(
        "detect",
        *images,
        "--model",
        shared(SMALL),
        "--head",
        "yolov5_sigmoid",
        "--json",
        "--conf",
        "0.3",
        "--classes",
        "person",
        "2",
    )
    assert done.returncode == 0, done.stderr
    messages = [json.loads(line) for line in done.stdout.splitlines()]
    schema = json.loads(streamd("schema", "message").stdout)
    for message, image in zip(messages, images, strict=True):
        jsonschema.validate(message, schema)
        assert message["source"] == str(image)
        assert {d["label"] for d in message["detections"]} <= {"person", "car"}
        assert all(d["score"] >= 0.3 for d in message["detections"])


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["none.mp4"], 4, "none.mp4: No such file"),
        (["x.jpg", "--model", "none.onnx"], 3, "none.onnx: does not exist"),
        (["x.jpg", "--conf", "7"], 2, "--conf"),
        (["x.jpg", "--classes", "persn"], 2, "no class 'persn'; near: person"),
    ],
)
def test_detect_names_what_is_wrong(arguments: list[str], code: int, message: str) -> None:
    if "--model" not in arguments:
        arguments = [*arguments, "--model", str(shared(SMALL)), "--head", "yolov5_sigmoid"]
    done = streamd("detect", *arguments)
    assert done.returncode == code, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_a_failing_stage_ends_detect_promptly_whatever_waits() -> None:
    """The model's head is not declared: its first frame is refused while a hundred images wait."""
    done = streamd("detect", shared("images/coco_val128/images"), "--model", shared(SMALL), timeout=40)
    assert done.returncode == 3, done.stderr
    assert "yolov5_sigmoid" in done.stderr
    assert "Traceback" not in done.stderr


def test_one_bad_input_does_not_cost_the_others(tmp_path: Path) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff nothing")
    clip = write_clip(tmp_path / "clip.mp4", frames=3)
    done = streamd(
        "detect",
        tmp_path / "broken.jpg",
        tmp_path / "none.mp4",
        clip,
        "--model",
        shared(SMALL),
        "--head",
        "yolov5_sigmoid",
    )
    assert done.returncode == 4
    assert len(done.stdout.splitlines()) == 3
    assert "broken.jpg" in done.stderr
    assert "none.mp4" in done.stderr


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


def test_check_looks_at_keys_and_certificates(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("short\n")
    path = config(
        tmp_path, null(more="sinks: [{kind: zmq, bind: 'ipc://z', curve: {secret_key: '${file:key}', clients: none}}]")
    )
    path.write_text(path.read_text().replace("{listen: null}", "{tls: {certificate: c.pem, key: k.pem}}"))
    done = streamd("check", path)
    assert done.returncode == 2
    assert done.stdout.splitlines() == [
        f"{path}: sinks[0].curve.secret_key: expected a key of 40 characters, as generated by `streamd keygen`",
        f"{path}: metrics.tls: {tmp_path}/c.pem cannot be read: No such file or directory; expected a PEM file",
    ]
    (tmp_path / "key").unlink()
    assert streamd("check", path).returncode == 2
    assert streamd("check", "--no-secrets", path).returncode == 0


def test_passwords_in_a_file_for_all_to_read_are_warned_of(tmp_path: Path) -> None:
    path = config(tmp_path, null("[{id: a, url: 'rtsp://u:geheim@h/x'}]"))
    path.chmod(0o644)
    done = streamd("check", path)
    assert (done.returncode, "geheim" in done.stdout + done.stderr) == (0, False)
    assert "warning: the file contains passwords and others can read it (mode 0644); chmod 600 it" in done.stdout
    path.chmod(0o600)
    assert "warning" not in streamd("check", path).stdout


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


@pytest.mark.parametrize(("character", "written"), [("/", "%2F"), ("?", "%3F"), ("#", "%23")])
def test_check_names_what_a_password_must_not_have(tmp_path: Path, character: str, written: str) -> None:
    path = config(tmp_path, null(f"[{{id: a, url: 'rtsp://admin:gehe{character}im1@cam/x'}}]"))
    done = streamd("check", str(path))
    assert done.returncode == 2
    assert f"streams[0].url: there is a raw {character} in the password" in done.stdout
    assert written in done.stdout
    assert "gehe" not in done.stdout + done.stderr


def test_detect_reads_folders_below_and_overwrites_nothing(tmp_path: Path) -> None:
    images = sorted(shared("images/coco_val128/images").iterdir())[:2]
    for name, image in zip((b"a.jpg", b"below/a.jpg", b"below/\xff.jpg"), (*images, images[0]), strict=True):
        target = tmp_path / "in" / os.fsdecode(name)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(image.read_bytes())
    arguments = ("detect", tmp_path / "in", "--model", "builtin:road6", "--recursive", "--save")
    refused = streamd(*arguments, tmp_path / "in")
    assert refused.returncode == 2
    assert one_message(refused.stderr).startswith("streamd: --save")
    done = streamd(*arguments, tmp_path / "out", "--json")
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 3
    assert f"saved: 3 images in {tmp_path / 'out'}" in done.stderr
    assert sorted(os.listdir(os.fsencode(tmp_path / "out"))) == [b"a-2.jpg", b"a.jpg", b"\xff.jpg"]


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
