"""`streamd check`: what is wrong with a configuration, in the words of its users."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.cli.commands import config, null, streamd


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
    assert f"absent.yaml:4: streams[0].url: {tmp_path}/none.mp4 is not a file" in done.stdout


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
    no_file = "is not a file; expected a video file, /dev/videoN, or a URL such as rtsp://HOST/PATH"
    assert told.splitlines() == [
        f"{place}:3: metrics.listen: expected HOST:PORT, as in 127.0.0.1:9188 or [::1]:9188",
        f"{place}:6: streams[0].id: gate is the id of 2 streams; ids must be unique",
        f"{place}:6: streams[0].max_fps: expected a number of frames a second, without the unit",
        f"{place}:7: streams[1].id: gate is the id of 2 streams; ids must be unique",
        f"{place}:8: streams[2].url: rtps:// is no protocol that FFmpeg knows; did you mean rtsp?",
        f"{place}:9: streams[3].pace: only files, HLS and HTTP have a pace of their own; remove it",
        f"{place}:13: sinks[1].hwm: expected at least 1, not 0",
        f"{place}:7: streams[1].url: {tmp_path}/none.mp4 {no_file}",
        f"{place}:12: sinks[0].path: {tmp_path}/absent is not a folder; create it",
        f"{place}:14: sinks[2].bind: /nonexistent is not a folder; create it",
    ]


def test_what_an_absent_variable_leads_to_is_not_told(tmp_path: Path) -> None:
    """An address with a variable in it names no file; the stream beside it does."""
    text = """\
model: {path: none}
engine: {kind: 'null'}
streams:
  - {id: gate, url: "clips/${NOPE}.mp4"}
  - {id: yard, url: none.mp4}
sinks:
  - {kind: jsonl, path: "${NOPE}/out.jsonl"}
  - {kind: zmq, bind: "ipc:///nonexistent/z", curve: {secret_key: "${file:none.key}", clients: any}}
"""
    path = config(tmp_path, text)
    done = streamd("check", path)
    absent = "environment variable NOPE is not set; set it, or write ${NOPE:-default}"
    expected = "expected a video file, /dev/videoN, or a URL such as rtsp://HOST/PATH"
    assert done.returncode == 2
    assert [line.removeprefix(str(path)) for line in done.stdout.splitlines()] == [
        f":4: {absent}",
        f":7: {absent}",
        f":8: {tmp_path}/none.key: cannot be read: No such file or directory; expected a file with one secret",
        f":5: streams[1].url: {tmp_path}/none.mp4 is not a file; {expected}",
        ":8: sinks[1].bind: /nonexistent is not a folder; create it",
    ]


def test_what_is_told_of_a_file_that_is_none(tmp_path: Path) -> None:
    told = [
        streamd("check", config(tmp_path, f'model: {{path: m.onnx}}\nstreams: [{{id: a, url: "{url}"}}]\n')).stdout
        for url in ("0", "“rtsp://h/x”", "/videos")
    ]
    assert "is not a file; a camera at this machine is /dev/video0" in told[0]
    assert "is not a file; it holds typographic quotes" in told[1]
    assert "is not a file; expected a video file" in told[2]


def test_check_looks_at_the_places_that_are_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    more = "events: {state_dir: file/state}\nmedia: {folder: file/media}\nrecorder: {folder: bundles}\n"
    more += "sinks: [{kind: jsonl, path: '.'}]"
    path = config(tmp_path, null(more=more))
    done = streamd("check", path)
    assert done.stdout.splitlines() == [
        f"{path}:8: sinks[0].path: {tmp_path} is a folder; expected a file",
        f"{path}:5: events.state_dir: {tmp_path}/file is not a folder; expected one",
        f"{path}:6: media.folder: {tmp_path}/file is not a folder; expected one",
    ]
    assert not (tmp_path / "bundles").exists()  # nothing is made


def test_check_looks_at_keys_and_certificates(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("short\n")
    path = config(
        tmp_path, null(more="sinks: [{kind: zmq, bind: 'ipc://z', curve: {secret_key: '${file:key}', clients: none}}]")
    )
    path.write_text(path.read_text().replace("{listen: null}", "{tls: {certificate: c.pem, key: k.pem}}"))
    done = streamd("check", path)
    assert done.returncode == 2
    assert done.stdout.splitlines() == [
        f"{path}:5: sinks[0].curve.secret_key: expected a key of 40 characters, as generated by `streamd keygen`",
        f"{path}:3: metrics.tls: {tmp_path}/c.pem cannot be read: No such file or directory; expected a PEM file",
    ]
    (tmp_path / "key").unlink()
    assert streamd("check", path).returncode == 2
    assert streamd("check", "--no-secrets", path).returncode == 0


def test_check_looks_at_what_outputs_need_of_this_machine(tmp_path: Path) -> None:
    for package in ("paho", "nats", "redis", "opentelemetry"):
        hidden = tmp_path / "hidden" / package / "__init__.py"
        hidden.parent.mkdir(parents=True)
        hidden.write_text(f"raise ModuleNotFoundError('No module named {package}', name='{package}')\n")
    sinks = """\
otlp: {endpoint: "http://collector:4318"}
sinks:
  - {kind: mqtt, broker: broker.lan, tls: {ca: ca.pem}}
  - {kind: nats, servers: [nats.lan]}
  - {kind: redis, server: redis.lan}
  - {kind: webhook, url: "https://hooks.lan/x", tls: {certificate: c.pem, key: k.pem}}
"""
    path = config(tmp_path, null(more=sinks))
    python_path = f"{tmp_path}/hidden:{os.environ.get('PYTHONPATH', '')}"
    done = streamd("check", path, env=os.environ | {"PYTHONPATH": python_path})
    no_file = "cannot be read: No such file or directory; expected a PEM file"
    assert done.returncode == 2
    assert done.stdout.splitlines() == [
        f"{path}:7: sinks[0].kind: mqtt sink: needs paho-mqtt; install it with: pip install 'streamd[mqtt]'",
        f"{path}:8: sinks[1].kind: nats sink: needs nats-py; install it with: pip install 'streamd[nats]'",
        f"{path}:9: sinks[2].kind: redis sink: needs redis-py; install it with: pip install 'streamd[redis]'",
        f"{path}:5: otlp: opentelemetry is not installed: pip install 'streamd[otlp]'",
        f"{path}:7: sinks[0].tls: {tmp_path}/ca.pem {no_file}",
        f"{path}:10: sinks[3].tls: {tmp_path}/c.pem {no_file}",
    ]
    installed = streamd("check", path).stdout.splitlines()
    assert installed == done.stdout.splitlines()[4:]
    assert streamd("check", "--no-secrets", path).returncode == 0


def test_passwords_in_a_file_for_all_to_read_are_warned_of(tmp_path: Path) -> None:
    path = config(tmp_path, null("[{id: a, url: 'rtsp://u:geheim@h/x'}]"))
    path.chmod(0o644)
    done = streamd("check", path)
    assert (done.returncode, "geheim" in done.stdout + done.stderr) == (0, False)
    assert "warning: the file contains passwords and others can read it (mode 0644); chmod 600 it" in done.stdout
    path.chmod(0o600)
    assert "warning" not in streamd("check", path).stdout


@pytest.mark.parametrize(("character", "written"), [("/", "%2F"), ("?", "%3F"), ("#", "%23")])
def test_check_names_what_a_password_must_not_have(tmp_path: Path, character: str, written: str) -> None:
    path = config(tmp_path, null(f"[{{id: a, url: 'rtsp://admin:gehe{character}im1@cam/x'}}]"))
    done = streamd("check", str(path))
    assert done.returncode == 2
    assert f"streams[0].url: there is a raw {character} in the password" in done.stdout
    assert written in done.stdout
    assert "gehe" not in done.stdout + done.stderr


def test_check_names_classes_of_rules_that_the_model_does_not_have(tmp_path: Path) -> None:
    points = "points: [[0.1, 0.1], [0.9, 0.1], [0.5, 0.9]]"
    rules = f"zones: [{{name: yard, {points}, classes: [thing, thnig, 7]}}], "
    rules += "lines: [{name: gate, points: [[0, 0.5], [1, 0.5]], classes: [cat]}]"
    path = config(tmp_path, null(f"[{{id: a}}, {{id: b, {rules}}}]".replace("id:", "kind: synthetic, id:")))
    done = streamd("check", path)
    assert done.returncode == 2
    assert done.stdout.splitlines() == [
        f"{path}:4: streams[1].zones[0].classes[1]: the model has no class thnig; did you mean thing?",
        f"{path}:4: streams[1].zones[0].classes[2]: there is no class 7; expected a number that is 0 to 0",
        f"{path}:4: streams[1].lines[0].classes[0]: the model has no class cat; it has thing",
    ]
    assert streamd("check", "--no-model", path).returncode == 0
