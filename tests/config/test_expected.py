"""What plausible mistakes are answered with: what was expected and what to do, never the value of a secret."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
from pydantic import Field, field_validator
from pydantic.fields import FieldInfo

from streamd.config import Config, elsewhere
from streamd.config.expected import sections_of, unknown_field
from streamd.config.loader import load
from streamd.engine import ENGINES
from streamd.errors import ConfigError
from streamd.heads import HEADS, DetectSettings
from streamd.settings import Pattern, Settings, marks_of
from streamd.sinks import SINKS, SinkSettings

GOOD = {"model": "model: {path: m.onnx}", "streams": "streams: [{id: a, url: x.mp4}]"}


def problems(folder: Path, text: str) -> list[str]:
    path = folder / "c.yaml"
    path.write_text(text + "\n" + "\n".join(more for name, more in GOOD.items() if f"{name}:" not in text))
    with pytest.raises(ConfigError) as caught:
        load(path, {})
    return [line.removeprefix(f"{path}:") for line in str(caught.value).splitlines()]


def stream(more: str) -> str:
    return f"streams: [{{id: a, url: x.mp4, {more}}}]"


ZONE = "{name: z, points: [[0.1, 0.1], [0.9, 0.1], [0.9, 0.9]]"
NOT_ONE_VALUE = ", and not a single value or a list"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # Numbers and words.
        ("model: {path: m.onnx, detect: {conf: 25}}", "1: model.detect.conf: expected at most 1, not 25"),
        (stream("loop: sure"), "1: streams[0].loop: expected true or false"),
        (stream("transport: TCP"), "1: streams[0].transport: expected tcp, udp or auto; did you mean tcp?"),
        (stream("transport: no"), "YAML reads on, off, yes and no as true or false: put it in quotes"),
        ("logging: {level: geheim}", "1: logging.level: expected debug, info, warning or error"),
        ("sinks: [{kind: mqtt, broker: b, protocol: 5}]", "expected 5 or 3.1.1; YAML reads this as a number"),
        (stream("look: {when: motion, sensitivity: high}"), "look.sensitivity: expected auto, or a number"),
        ("metrics: {listen: 9188}", "1: metrics.listen: expected HOST:PORT, as in 127.0.0.1:9188"),
        ("streams: [{id: 7, url: x.mp4}]", "1: streams[0].id: expected text; YAML reads this as a number: put it in"),
        ("sinks: [{kind: zmq, bind: '127.0.0.1:5555'}]", "a port from 1 to 65535, as in tcp://127.0.0.1:5555"),
        # A value or a list in place of a section.
        ("model: m.onnx", f"1: model: expected fields below it, as in model: {{path: …}}{NOT_ONE_VALUE}"),
        ("engine: openvino", f"1: engine: expected fields below it, as in engine: {{kind: openvino}}{NOT_ONE_VALUE}"),
        ("engine: gpu", f"1: engine: expected fields below it, as in engine: {{kind: openvino}}{NOT_ONE_VALUE}"),
        ("tracking: true", f"1: tracking: expected fields below it, as in tracking: {{}}{NOT_ONE_VALUE}"),
        ("batch: 8", f"1: batch: expected fields below it, as in batch: {{max: …}}{NOT_ONE_VALUE}"),
        (stream("look: motion"), f"expected fields below it, as in look: {{when: motion}}{NOT_ONE_VALUE}"),
        ("streams: ['rtsp://u:geheim@h/x']", f"expected fields below it, as in {{id: …, url: …}}{NOT_ONE_VALUE}"),
        # Lists.
        (stream("lines: [{name: l, points: [0.1, 0.2]}]"), "[1]: expected 2 numbers in brackets, as in [0.25, 0.5]"),
        ("model: {path: m.onnx, mean: 0.5}", "1: model.mean: expected 3 numbers in brackets, as in [0.25, 0.5, 0.75]"),
        # Unknown fields.
        ("zones: []", "1: zones: unknown field; did you mean streams[].zones?"),
        ("page: true", "1: page: unknown field; did you mean metrics.page?"),
        ("model: {path: m.onnx, confidence: 0.4}", "1: model.confidence: unknown field; did you mean detect.conf?"),
        (stream("name: gate"), "1: streams[0].name: unknown field; did you mean id?"),
        (stream("fps: 5"), "1: streams[0].fps: unknown field; did you mean max_fps?"),
        ("sinks: [{kind: mqtt, host: b}]", "1: sinks[0].host: unknown field; did you mean broker?"),
        ("sinks: [{kind: redis, address: b}]", "1: sinks[0].address: unknown field; did you mean server?"),
        ("sinks: [{kind: zmq, port: 5555}]", "1: sinks[0].port: unknown field; did you mean bind?"),
        ("metrics: {port: 9188}", "1: metrics.port: unknown field; did you mean listen?"),
        ("metrics: {xyz: 1}", "1: metrics.xyz: unknown field; expected one of listen, login, page, tls"),
        # What other programs call them.
        (stream("rtsp-reconnect-interval-sec: 5"), "unknown field; did you mean reconnect?"),
        (stream("drop: oldest"), "streams[0].drop: unknown field; did you mean policy?"),
        (stream("objects: [person]"), "unknown field; did you mean zones[].classes or lines[].classes?"),
        (stream("record: {}"), "unknown field; did you mean zones[].clip or lines[].clip?"),
        (stream(f"zones: [{ZONE}, labels: [car]}}]"), "labels: unknown field; did you mean classes or model.labels?"),
        ("model: {onnx-file: m.onnx}", "1: model.onnx-file: unknown field; did you mean path?"),
        ("model: {path: m.onnx, imgsz: 640}", "1: model.imgsz: unknown field; did you mean input_size?"),
        ("model: {path: m.onnx, scale: 255}", "1: model.scale: expected at most 1, not 255"),
        ("model: {path: m.onnx, head: {kind: yolo11}}", "; did you mean yolov8?"),
        ("model: {path: m.onnx, head: {kind: YOLOX}}", "; did you mean yolox?"),
        ("engine: {kind: trt}", "; did you mean tensorrt?"),
        ("sinks: [{kind: MQTT, broker: b}]", "; did you mean mqtt?"),
        ("sinks: [{kind: kafka}]", "in the group streamd.sinks.1"),
        ("mqtt: {host: b}", "1: mqtt: unknown field; did you mean sinks: [{kind: mqtt, …}]?"),
        ("openvino: {}", "1: openvino: unknown field; did you mean engine: {kind: openvino, …}?"),
        ("log_level: debug", "1: log_level: unknown field; did you mean logging.level?"),
        ("events: {path: x}", "1: events.path: unknown field; did you mean state_dir?"),
        ("metrics: {interval: 5}", "1: metrics.interval: unknown field; expected one of listen, login, page, tls"),
        ("batch: {timeout_ms: 5}", "1: batch.timeout_ms: unknown field; did you mean age_ms?"),
        (stream("lines: [{name: l, start: [0, 1], end: [1, 0]}]"), "start: unknown field; did you mean points?"),
        ("sinks: [{kind: webhook, url: 'http://h/', headers: {}}]", "unknown field; did you mean bearer_token?"),
        ("events: {keep_days: 7d}", "1: events.keep_days: expected a number of days, without the unit"),
        # Fields of another kind.
        ("engine: {precision: fp16}", "unknown field of this kind; kind: openvino and kind: tensorrt have it"),
        ("engine: {half: true}", "half: unknown field of this kind; kind: openvino and kind: tensorrt have it"),
        ("sinks: [{kind: zmq, rotate_mb: 5}]", "rotate_mb: unknown field of this kind; kind: jsonl has it"),
        # IPv6.
        ("metrics: {listen: '::1:9188'}", "expected HOST:PORT, as in 127.0.0.1:9188 or [::1]:9188"),
        ("sinks: [{kind: zmq, bind: 'tcp://::1:5555'}]", "a port from 1 to 65535; an IPv6 address in brackets"),
        # A dash too many.
        ("streams:\n  - id: a\n  - url: x.mp4", "streams[0].url: is required; it stands in the next item"),
        ("sinks:\n  - kind: jsonl\n  - path: x\nstreams:\n  - id: a\n  - {id: b, url: x.mp4}", "url: is required"),
        # Not YAML.
        ("model:\n\tpath: x", "2: not valid YAML: a tab where YAML expects spaces; indent with spaces"),
        ('model: {path: "m.onnx}', "not valid YAML: a quote that is opened in line 1 is not closed"),
        ("streams:\n  - id: a\n  url: x.mp4", "3: not valid YAML: a line with another indentation than the section"),
        (stream("url: x: y"), "1: not valid YAML: a brace that is opened in line 1 is not closed here, or a value"),
        ("model: a: b", "1: not valid YAML: a colon where none is expected"),
        ("streams: [{id: a, url: *geheim}]", "1: not valid YAML: a value begins with a character that has a meaning"),
        ("streams: [{id: a, url: @geheim}]", "1: not valid YAML: a value begins with a character that has a meaning"),
        ('model: {path: "C:\\models"}', "1: not valid YAML: a backslash in double quotes begins an escape"),
    ],
)  # fmt: skip
def test_what_is_told(tmp_path: Path, text: str, expected: str) -> None:
    told = problems(tmp_path, text)
    assert any(expected in line for line in told), told
    assert "geheim" not in "".join(told)


def test_what_others_call_a_field_stands_for_one_that_exists() -> None:
    known = {name for _, name, _ in fields(Config, set())}
    for name, meant in elsewhere.FIELDS.items():
        assert {field.rpartition(".")[2] for field in meant} <= known, name
    kinds = {kind for registry in (HEADS, ENGINES, SINKS) for kind in registry.builtin()}
    assert set(elsewhere.KINDS.values()) <= kinds
    assert not set(elsewhere.KINDS) & kinds
    assert set(elsewhere.FIELDS) >= elsewhere.VAGUE


def test_an_invalid_item_does_not_make_its_list_too_short(tmp_path: Path) -> None:
    schedule = "schedule: {timezone: UTC, times: [{days: [monday], start: '7:00'}]}"
    where = "1: streams[0].zones[0].schedule.times[0]"
    assert problems(tmp_path, stream(f"zones: [{ZONE}, {schedule}}}]")) == [
        f"{where}.days[0]: expected mon, tue, wed, thu, fri, sat or sun; did you mean mon?",
        f"{where}.start: expected HH:MM, from 00:00 to 24:00, in quotes",
    ]


def test_of_a_secret_not_even_the_length_is_told(tmp_path: Path) -> None:
    text = "sinks: [{kind: webhook, url: 'https://h/x', signing_key: '${KEY:-abc}'}]"
    assert problems(tmp_path, text) == ["1: sinks[0].signing_key: expected at least 16 characters"]


def test_what_could_not_be_substituted_is_told_once(tmp_path: Path) -> None:
    login = "metrics: {login: {username: a, password: '%s'}}"
    assert problems(tmp_path, login % "${NOPE}") == [
        "1: environment variable NOPE is not set; set it, or write ${NOPE:-default}"
    ]
    [told] = problems(tmp_path, login % "${file:nope}")
    assert "nope: cannot be read" in told
    [told] = problems(tmp_path, login % "$${file:nope}")  # that text itself
    assert "must not be written in the file itself" in told


@pytest.mark.parametrize(
    ("given", "warned"),
    [
        ("camera_health: {begin_s: 3}", "camera_health: has no effect without enabled: true"),
        ("camera_health: {enabled: false, begin_s: 3}", None),
        ("look: {min_fps: 2}", "look: has no effect without when: motion"),
        ("look: {when: always, min_fps: 2}", None),
    ],
)
def test_settings_of_what_is_off_are_warned_of(tmp_path: Path, given: str, warned: str | None) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(f"model: {{path: m.onnx}}\nstreams:\n  - {{id: a, url: 'rtsp://h/x', {given}}}\n")
    assert load(path, {}).warnings == ((f"line 3: streams[0].{warned}",) if warned else ())


def test_times_in_another_unit_are_warned_of(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    given = "open_timeout_s: 5000, read_timeout_s: 7200, max_age_ms: 0.2, objective: {latency_ms: 200}"
    path.write_text(f"model: {{path: m.onnx}}\nstreams:\n  - {{id: a, url: 'rtsp://h/x', {given}}}\n")
    assert load(path, {}).warnings == (
        "line 3: streams[0].open_timeout_s: is 5000 seconds, 83 minutes; check the unit",
        "line 3: streams[0].max_age_ms: is 0.2 milliseconds; check the unit",
    )


def test_a_variable_without_braces_is_warned_of(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("model: {path: m.onnx}\nstreams:\n  - {id: a, url: 'rtsp://u:$CAM_PASSWORD@h/x'}\n")
    path.chmod(0o600)
    warning = "line 3: a $ before a name is read as text; a variable is ${NAME}, and $$ is a dollar sign"
    assert load(path, {"CAM_PASSWORD": "geheim"}).warnings == (warning,)
    path.write_text(path.read_text().replace("$CAM_PASSWORD", "$$CAM_PASSWORD"))
    assert load(path, {}).warnings == ()


def fields(section: type[Settings], seen: set[type[Settings]]) -> Iterator[tuple[type[Settings], str, FieldInfo]]:
    if section in seen:
        return
    seen.add(section)
    for name, field in section.model_fields.items():
        yield section, name, field
        for _, below in sections_of(field):
            yield from fields(below, seen)


def test_every_pattern_is_explained() -> None:
    def has_pattern(annotation: Any, metadata: list[Any]) -> bool:
        inner = [*getattr(annotation, "__metadata__", ()), *metadata]
        inner += [m for each in inner if isinstance(each, FieldInfo) for m in each.metadata]
        if any(getattr(each, "pattern", None) for each in inner):
            return True
        return any(has_pattern(argument, []) for argument in getattr(annotation, "__args__", ()))

    found = [(s, n, f) for s, n, f in fields(Config, set()) if has_pattern(f.annotation, f.metadata)]
    assert len(found) > 15
    assert [f"{s.__name__}.{n}" for s, n, f in found if not marks_of(f, Pattern)] == []


def test_a_field_is_looked_for_below_before_elsewhere() -> None:
    assert unknown_field("listen", Config, Config) == "; did you mean fleet.listen or metrics.listen?"
    assert unknown_field("labels", DetectSettings, Config) == "; did you mean classes or model.labels?"
    assert unknown_field("anything", None, Config) == ""


class TypedSettings(SinkSettings):
    """A sink with what a plugin may ask of its fields."""

    kind: Literal["typed"] = "typed"
    url: str = Field("https://x", pattern="^https?://", description="Address.")
    width: int = Field(2, multiple_of=2, description="Pixels.")
    step: float = Field(0.5, multiple_of=0.5, description="Seconds.")
    odd: int = Field(1, description="An odd number.")

    @field_validator("odd")
    @classmethod
    def _is_odd(cls, value: int) -> int:
        if value % 2 == 0:
            raise ValueError("expected an odd number")
        return value


@pytest.mark.parametrize(
    ("field", "words"),
    [
        ("url: ftp://x", "url: expected text that matches ^https?://"),
        ("width: 3", "width: expected a multiple of 2"),
        ("step: 0.7", "step: expected a multiple of 0.5"),
        ("odd: 2", "odd: expected an odd number"),
    ],
)
def test_what_a_plugin_asks_of_its_fields_is_told_in_the_same_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, field: str, words: str
) -> None:
    SINKS.builtin()
    monkeypatch.setitem(SINKS._kinds, "typed", TypedSettings)
    assert problems(tmp_path, f"sinks: [{{kind: typed, {field}}}]") == [f"1: sinks[0].{words}"]
