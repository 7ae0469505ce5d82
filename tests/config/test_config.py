"""Configuration: the least one works, every mistake is told at once with field and line, secrets stay secret."""

from __future__ import annotations

import base64
import os
import textwrap
import time
from pathlib import Path

import hypothesis.strategies as st
import jsonschema
import pytest
import yaml
from hypothesis import HealthCheck, given, settings

from streamd.config import Config
from streamd.config.loader import MOST_PROBLEMS, InvalidConfig, load, load_in_time
from streamd.errors import ConfigError
from streamd.security.redact import redact
from streamd.sinks import SINKS
from streamd.sources.av import AvStreamSettings

NAME_RULE = "expected at most 63 letters (a to z), digits, dots, dashes and underscores, not beginning with a dot or"
NAME_RULE += " dash"
LEAST = """
model: {path: yolov5n_heads.onnx}
streams:
  - {id: gate, url: "rtsp://${CAM_USER}:${CAM_PASSWORD}@10.0.0.7/stream1"}
  - {id: yard, url: yard.mp4, loop: true}
sinks:
  - {kind: zmq, bind: "tcp://127.0.0.1:5555"}
metrics: {listen: "127.0.0.1:9188"}
"""
ENVIRONMENT = {"CAM_USER": "admin", "CAM_PASSWORD": "geheim@1"}


def write(folder: Path, text: str) -> Path:
    path = folder / "c.yaml"
    path.write_text(textwrap.dedent(text))
    return path


def problems(folder: Path, text: str, environment: dict[str, str] | None = None) -> list[str]:
    path = write(folder, text)
    with pytest.raises(ConfigError) as caught:
        load(path, environment or {})
    return [line.removeprefix(f"{path}:") for line in str(caught.value).splitlines()]


def test_the_least_configuration(tmp_path: Path) -> None:
    loaded = load(write(tmp_path, LEAST), ENVIRONMENT)
    config = loaded.config
    gate, yard = config.streams
    assert isinstance(gate, AvStreamSettings)
    assert isinstance(yard, AvStreamSettings)
    assert gate.url == "rtsp://admin:geheim@1@10.0.0.7/stream1"
    assert yard.url == str(tmp_path / "yard.mp4")
    assert config.model.path == str(tmp_path / "yolov5n_heads.onnx")
    assert (config.engine.kind, config.model.detect.conf, config.model.detect.iou) == ("auto", 0.25, 0.45)
    assert loaded.secrets == {"admin", "geheim@1", base64.b64encode(b"admin:geheim@1").decode()}


def test_every_problem_at_once_with_its_line(tmp_path: Path) -> None:
    found = problems(
        tmp_path,
        """\
        model: {pth: x.onnx}
        streams:
          - {id: a b, url: x.mp4}
          - {id: c, url: y.mp4, transprot: udp}
          - {id: c, url: y.mp4, ring: 0}
        sinks:
          - {kind: zqm}
        drain_s: soon
        """,
    )
    assert found == [
        "1: model.path: is required",
        "1: model.pth: unknown field; did you mean path?",
        f"3: streams[0].id: {NAME_RULE}",
        "4: streams[1].transprot: unknown field; did you mean transport?",
        "5: streams[2].ring: expected at least 1, not 0",
        (
            f"7: sinks[0].kind: expected one of {', '.join(SINKS.names())}; if it comes from another package, install "
            "that here (its entry point is in the group streamd.sinks.1)"
        ),
        "8: drain_s: expected a number of seconds, without the unit",
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("streams: []", "streams: expected at least one stream"),
        ("streams: [{id: a, url: x.mp4}, {id: a, url: y.mp4}]", "ids must be unique"),
        ("streams: [{id: a, url: 'rtsp://h/x', loop: true}]", "only a file can loop"),
        ("streams: [{id: a, url: 'rtsp://h/x', max_fps: 1e-300}]", "max_fps: expected at least 0.00001"),
        ("streams: [{id: a, url: 'rtsp://h/x', start_s: 3}]", "streams[0].start_s: only a file has a beginning"),
        ("streams: [{id: a, url: x.mp4, transport: udp}]", "a file has no transport"),
        ("streams: [{id: a, url: x.mp4, policy: latest, ring: 9}]", "remove ring"),
        ("streams: [{id: a, url: x.mp4, isolation: process, decode: nvdec}]", "streams[0].decode: pictures in GPU"),
        ("streams: [{id: a, url: x.mp4, max_rss_mb: 500}]", "set isolation: process"),
        ("sinks: [{kind: zmq}]", "give either bind"),
        ("sinks: [{kind: zmq, bind: 'tcp://*:1', connect: 'tcp://h:1'}]", "give either bind"),
        ("sinks: [{kind: jsonl}, {kind: jsonl}]", "standard output is used"),
        ("sinks: [{kind: jsonl, name: a}, {kind: zmq, bind: 'ipc://x', name: a}]", "names must be unique"),
        ("metrics: {listen: 9188}", "metrics.listen"),
        ("metrics: {login: {username: u, password: longenough}}", "metrics.login.password: must not be written"),
        ("metrics: {login: {username: 'u:v', password: x}}", "metrics.login.username: expected a name without a colon"),
        ("metrics: {login: {username: u, password: short}}", "metrics.login.password: expected at least 8 characters"),
        ("metrics: {listen: '0.0.0.0:9188', page: true}", "listen on 127.0.0.1 or set metrics.login"),
        ("metrics: {tls: {certificate: c.pem}}", "metrics.tls.key: is required"),
        ("engine: {kind: tensorrt, mps: true}\nworkers: 1", "engine.mps: only useful with several"),
        ("engine: {kind: 'null', device: [0, 0]}", "engine.device: names a device twice"),
        ("streams: [{id: a, url: x.mp4, device: 1}]", "streams[0].device: 1 is not one of the engine's devices (0)"),
        ("engine: {kind: cuda}", "engine.kind: expected one of"),
        ("model: {path: m.onnx, detect: {conf: 2}}", "model.detect.conf"),
        ("streams: [{id: off, url: x.mp4}]", "streams[0].id: expected text; YAML reads on, off"),
        ("streams: {id: a, url: x.mp4}", "streams: expected a list: one item a line"),
        ("events: 3", "events: expected fields below it"),
        ("share: []", "share: expected fields below it"),
        ("fleet: {box: {fps: 5}, reach: [{streams: a, labels: []}]}", "labels: expected at least 1, not 0"),
        ("streams: [" + "{id: a, kind: synthetic}, " * 1025 + "]", "streams: expected at most 1024, not 1025; divide"),
        ("streams: [" + "{id: a, kind: synthetic}, " * 10_001 + "]", "streams: expected at most 10000, not 10001"),
        ("workers: two", "workers: expected a whole number from 1 to 64, or auto"),
        ("workers: 0", "workers: expected a whole number from 1 to 64, or auto"),
        ("workers: 65", "workers: expected a whole number from 1 to 64, or auto"),
        ("workers: true", "workers: expected a"),
        ("stall_s: 60 s", "stall_s: expected a number of seconds, without the unit"),
        (
            "streams: [{id: a, url: x.mp4, max_fps: yes}]",
            "frames a second, without the unit; YAML reads on, off, yes and no as true or false",
        ),
        ("streams: [{id: a, url: x.mp4, reconnect: {max_s: on}}]", "reconnect.max_s: expected a number of seconds"),
        ("streams: [{id: a, url: x.mp4, reconnect: {initial_s: 0.005}}]", "expected at least 0.01, not 0.005"),
        ("stall_s: 1e-300", "expected at least 0.001"),
        ("metrics: {listen: '127.0.0.1:65536'}", "metrics.listen: expected HOST:PORT"),
        ("metrics: {listen: '127.0.0.1:９１'}", "metrics.listen: expected HOST:PORT"),
        ("sinks: [{kind: zmq, bind: 'tcp://127.0.0.1'}]", "sinks[0].bind: expected tcp://HOST:PORT or ipc://PATH"),
        ("sinks: [{kind: zmq, bind: ' tcp://*:5555'}]", "sinks[0].bind: expected tcp://HOST:PORT or ipc://PATH"),
        ("sinks: [{kind: zmq, bind: 'tcp://*:65536'}]", "sinks[0].bind: expected tcp://HOST:PORT or ipc://PATH"),
        ("sinks: [{kind: zmq, bind: 'udp://*:5555'}]", "sinks[0].bind: expected tcp://HOST:PORT or ipc://PATH"),
        (
            "sinks: [{kind: zmq, bind: 'tcp://127.0.0.1:7001'}, {kind: zmq, bind: 'tcp://*:7001'}]",
            "sinks[1].bind: port 7001 is taken by sinks[0].bind",
        ),
        (
            "metrics: {listen: '127.0.0.1:7001'}\nsinks: [{kind: zmq, bind: 'tcp://127.0.0.1:7001'}]",
            "sinks[0].bind: port 7001 is taken by metrics.listen",
        ),
        ("streams: [{id: 2027-01-01, url: x.mp4}]", "YAML reads this as a date: put it in quotes"),
        ("sinks: [{kind: zmq, connect: 'tcp://h:*'}]", "sinks[0].connect: names no port"),
        ("sinks: [{kind: zmq, bind: 'ipc://'}]", "sinks[0].bind: names no path"),
        (f"sinks: [{{kind: zmq, bind: 'ipc:///{'ä' * 53}b'}}]", "sinks[0].bind: the path of a socket has at most 107"),
        ("sinks: [{kind: jsonl, path: '${OUT-out}.jsonl'}]", "${ that begins no ${NAME}"),
        ("sinks: [{kind: jsonl, path: '$${A} ${'}]", "${ that begins no ${NAME}"),
        ('"\\ud800": 1', "a name holds half a surrogate pair"),
        ("x: &a 1\ny: &a 2", "the name of an anchor (&) is given twice"),
        ("unknown: 1", "unknown: unknown field"),
    ],
)
def test_single_mistakes(tmp_path: Path, change: str, message: str) -> None:
    base = {"model": "model: {path: m.onnx}", "streams": "streams: [{id: a, url: x.mp4}]"}
    base[change.split(":", 1)[0]] = change
    found = problems(tmp_path, "\n".join(base.values()))
    assert any(message in line for line in found), found


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("rtsp://", "names no host after the ://"),
        ("http:///x", "names no host after the ://"),
        ("rtsp://:554/x", "names no host after the ://"),
        ("rtsp://u:p@/x", "names no host after the ://"),
        ("rtsp://h:0/x", "its port is no number from 1 to 65535"),
        ("rtsp://h:65536/x", "its port is no number from 1 to 65535"),
        ("rtsp://u:p@h:55a/x", "its port is no number from 1 to 65535"),
        ("rtsp://admin:forgotten", "if that is a password, an @ and the host follow it"),
        ("rtsp://ho st/x", "its host cannot be read"),
        ("rtsp://<user>:<password>@<ip>/x", "its host is still a placeholder"),
        ("http://{host}:80/x", "its host is still a placeholder"),
        ("rtsp://fe80::1/x", "IPv6 in brackets"),
        ("rtsp://[::1/x", "IPv6 in brackets"),
        ("rtsp://[::1]:554/x", None),
        ("rtsp://h:/x", None),
        ("rtsp:/h/x", "is read as the path of a file; a URL begins with rtsp://"),
        ("RTSP:h/x", "a URL begins with rtsp://"),
        (" http://h/x", "a URL begins with http://"),
        ("rtsp://h/x ", "ends with a space or a line break"),
        ("clips/at 10:30/a.mp4", None),
        ("rtsp://u:p@h@h:554/x", None),
        ("http://h:80/x?mail=a@b:c", None),
        ("srt://:9000?mode=listener", None),
        ("http://:8080/x?listen=1", None),
        ("udp://@:1234", None),
    ],
)
def test_hosts_and_ports_of_cameras(tmp_path: Path, url: str, message: str | None) -> None:
    text = f"model: {{path: m.onnx}}\nstreams: [{{id: a, url: '{url}'}}]"
    if message is None:
        assert load(write(tmp_path, text), {}).config.streams
    else:
        (line,) = problems(tmp_path, text)
        assert line.startswith("2: streams[0].url: ")
        assert message in line
        assert "forgotten" not in line


def test_of_very_many_problems_some_are_told(tmp_path: Path) -> None:
    began = time.process_time()
    found = problems(tmp_path, "".join(f"k{n}: 1\n" for n in range(20_000)))
    assert time.process_time() - began < 5, "all of them are compared with what is known"
    assert len(found) == MOST_PROBLEMS + 1
    assert found[-1].endswith(f"and {20_002 - MOST_PROBLEMS} more problems")


def test_substitution(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("from-a-file\n")
    text = f"""
    model: {{path: "${{MODEL:-m.onnx}}"}}
    streams: [{{id: a, url: "rtsp://x:${{file:{tmp_path / "key"}}}@h/$$1"}}]
    """
    loaded = load(write(tmp_path, text), {})
    stream = loaded.config.streams[0]
    assert isinstance(stream, AvStreamSettings)
    assert stream.url == "rtsp://x:from-a-file@h/$1"
    assert "from-a-file" in loaded.secrets
    found = problems(tmp_path, "model: {path: '${NOPE}'}\nstreams: [{id: a, url: '${file:/nonexistent}'}]")
    assert any("1: " in line and "NOPE" in line for line in found), found
    assert any("/nonexistent" in line for line in found), found


def test_secrets_are_in_no_message(tmp_path: Path) -> None:
    found = problems(
        tmp_path, LEAST.replace("loop: true", "loop: maybe").replace("id: gate", 'id: "${CAM_PASSWORD}"'), ENVIRONMENT
    )
    assert found
    assert "geheim" not in "\n".join(found)


def test_a_credential_of_systemd(tmp_path: Path) -> None:
    (tmp_path / "camera").write_text("from-systemd\n")
    text = """
    model: {path: m.onnx}
    streams: [{id: a, url: "rtsp://x:${file:$CREDENTIALS_DIRECTORY/camera}@h/"}, {id: b, url: "rtsp://${file:camera}@h/"}]
    """
    loaded = load(write(tmp_path, text), {"CREDENTIALS_DIRECTORY": str(tmp_path)})
    assert [getattr(s, "url", "") for s in loaded.config.streams] == [
        "rtsp://x:from-systemd@h/",
        "rtsp://from-systemd@h/",
    ]
    (found,) = problems(tmp_path, text)
    assert "CREDENTIALS_DIRECTORY is not set; systemd sets it if the unit has LoadCredential=" in found
    (tmp_path / "camera").write_bytes(b"x" * 70_000)
    assert any("larger than 65536 bytes" in line for line in problems(tmp_path, text, {"CREDENTIALS_DIRECTORY": "/x"}))


@pytest.mark.parametrize("value", ["*x", "&x", "!x", "'x", "{x", "%x", "@x", "x", "2024-13-45", "123456"])
def test_a_password_is_in_no_message_however_it_is_written(tmp_path: Path, value: str) -> None:
    secret = value.replace("x", "geheim1")
    text = f"model: {{path: 1}}\nstreams:\n  - id: a\n    url: x\n    options:\n      password: {secret}\n"
    found = "\n".join(problems(tmp_path, text))
    assert secret.strip("*&!'{%@") not in found


def test_headers_and_inline_passwords_are_remembered(tmp_path: Path) -> None:
    text = """
    model: {path: m.onnx}
    streams:
      - {id: a, url: "http://u:inline-1@h/x", options: {headers: "Authorization: Bearer inline-2\r\nX-Key: inline-3"}}
    """
    loaded = load(write(tmp_path, text), {})
    assert redact("inline-1 or inline-2 or inline-3") == "*** or *** or ***"
    assert {"inline-1", "inline-2", "inline-3"} <= loaded.secrets


@pytest.mark.parametrize(
    "text",
    ["", "[]", "a: b: c", "model: &x [*x]", "a: !!python/object/apply:os.system ['true']", "\t", "x: 1\nx: 2", "\x00"],
)
def test_what_is_no_configuration(tmp_path: Path, text: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"c\.yaml"):
        load(path, {})


def test_bombs_are_bounded(tmp_path: Path) -> None:
    bomb = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "\n".join(
        f"{chr(98 + i)}: &{chr(98 + i)} [{','.join(['*' + chr(97 + i)] * 9)}]" for i in range(9)
    )
    for text in (bomb, "[" * 5000, "x: " + "y" * 3_000_000):
        with pytest.raises(ConfigError):
            load(write(tmp_path, text), {})


def test_a_folder_and_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is a folder"):
        load(tmp_path)
    with pytest.raises(ConfigError, match="No such file"):
        load(tmp_path / "none.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"model: \xff")
    with pytest.raises(ConfigError, match="UTF-8"):
        load(tmp_path / "latin.yaml")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(st.text(max_size=200))
def test_no_text_crashes_the_reader(tmp_path: Path, text: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(text, encoding="utf-8", errors="replace")
    with pytest.raises(ConfigError):
        load(path, {})


def test_every_field_of_every_section_is_described() -> None:
    schema = Config.model_json_schema()
    for definition in [schema, *schema["$defs"].values()]:
        assert definition.get("description"), definition.get("title")
        for name, entry in definition.get("properties", {}).items():
            if name == "kind":
                continue
            # A field that is a section of its own is described there.
            described = entry.get("description") or schema["$defs"][entry["$ref"].rsplit("/", 1)[1]]["description"]
            assert described.endswith("."), f"{definition['title']}.{name}"


@pytest.mark.parametrize(
    ("section", "valid"),
    [
        ("max_behind_ms: 0", True),
        ("max_behind_ms: 499", False),
        ("max_behind_ms: 500", True),
        ("max_behind_ms: 60000", True),
        ("max_behind_ms: 60001", False),
        ("max_behind_ms: null", True),
        ("look: {sensitivity: auto}", True),
        ("look: {sensitivity: 0.9}", False),
        ("look: {sensitivity: 1}", True),
        ("look: {sensitivity: 10}", True),
        ("look: {sensitivity: 10.5}", False),
    ],
)
def test_a_range_in_the_schema_is_the_one_that_is_checked(tmp_path: Path, section: str, valid: bool) -> None:
    text = f"model: {{path: m.onnx}}\nstreams: [{{id: a, kind: av, url: 'rtsp://cam/1', {section}}}]"
    schema = jsonschema.Draft202012Validator(Config.model_json_schema())
    assert schema.is_valid(yaml.safe_load(text)) is valid
    if valid:
        load(write(tmp_path, text))
    else:
        assert len(problems(tmp_path, text)) == 1


def test_an_input_size_is_positive(tmp_path: Path) -> None:
    found = problems(tmp_path, "model: {path: m.onnx, input_size: [0, -32]}\nstreams: [{id: a, url: x.mp4}]")
    assert found == [
        "1: model.input_size[0]: expected at least 1, not 0",
        "1: model.input_size[1]: expected at least 1, not -32",
    ]


def test_an_absent_variable_is_told_once(tmp_path: Path) -> None:
    found = problems(tmp_path, "model: {path: '${NOPE}'}\nstreams: [{id: a, url: x.mp4}]")
    assert found == ["1: environment variable NOPE is not set; set it, or write ${NOPE:-default}"]


def test_a_file_that_hangs_ends_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streamd.config.loader.LOAD_LIMIT_S", 0.1)
    path = tmp_path / "c.yaml"
    os.mkfifo(path)
    with (
        open(os.open(path, os.O_RDWR), "wb"),
        pytest.raises(ConfigError, match=r"c\.yaml: could not be read within 0\.1 s"),
    ):
        load_in_time(path)


def test_a_file_is_read_in_time_or_refused_as_ever(tmp_path: Path) -> None:
    with pytest.raises(InvalidConfig, match=r"c\.yaml:1: model"):
        load_in_time(write(tmp_path, "streams: []"))
    good = "model: {path: m.onnx}\nstreams: [{id: a, url: a.mp4}]\n"
    assert load_in_time(write(tmp_path, good)).config == load(tmp_path / "c.yaml").config


@pytest.mark.parametrize("text", ["", "\n", "# streams: [{id: a}]\n", "---\n"])
def test_a_file_with_nothing_in_it_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(InvalidConfig) as caught:
        load(path)
    assert str(caught.value) == f"{path}: is empty; expected a YAML file with the sections model and streams"


def test_a_head_is_asked_what_is_wrong_with_its_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from streamd.heads.yolov8 import Yolov8Settings

    monkeypatch.setattr(Yolov8Settings, "check", lambda self: iter([(("kind",), "of no use here")]))
    file = tmp_path / "streamd.yaml"
    file.write_text("model: {path: m.onnx, head: {kind: yolov8}}\nstreams: [{id: a, kind: synthetic}]\n")
    with pytest.raises(ConfigError, match=r"streamd.yaml:1: model.head.kind: of no use here"):
        load(file)
