"""YAML as people write it for other programs: anchors, merge keys, sections for them; and what must cost nothing."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest

from streamd.config.yamlfile import MAX_SCALAR, read_yaml
from streamd.errors import ConfigError
from streamd.security.redact import known, remember


def values(text: str, environment: dict[str, str] | None = None) -> object:
    document = read_yaml(text, environment or {})
    assert not document.problems
    return document.values


def told(text: str, environment: dict[str, str] | None = None) -> list[tuple[int, str]]:
    return read_yaml(text, environment or {}).problems


def test_merge_keys() -> None:
    text = """
x-camera: &camera {fps: 5, loop: true}
x-more: &more {loop: false, ring: 8}
streams:
  - {<<: *camera, id: a}
  - {id: b, <<: [*camera, *more], fps: 9}
  - <<: {<<: *more, fps: 1}
"""
    assert values(text) == {
        "streams": [
            {"id": "a", "fps": 5, "loop": True},
            {"id": "b", "fps": 9, "loop": True, "ring": 8},
            {"fps": 1, "loop": False, "ring": 8},
        ]
    }


def test_the_line_of_a_merged_value_is_where_it_stands() -> None:
    document = read_yaml("x-c: &c\n  fps: 5\nstreams:\n  - <<: *c\n    id: a\n", {})
    assert document.line(("streams", 0, "fps")) == 2
    assert document.line(("streams", 0, "id")) == 5


def test_a_section_for_others_is_not_read() -> None:
    assert values("x-secret: ${NOBODY_HAS_SET_THIS}\nx-: 1\na: 2\n") == {"a": 2}
    assert told("a:\n  x-b: ${NOBODY_HAS_SET_THIS}\n")  # at the top only


@pytest.mark.parametrize("text", ["<<: 5\n", "<<: [1, 2]\n"])
def test_what_cannot_be_merged(text: str) -> None:
    assert "expected a mapping" in told(text)[0][1]


def test_what_merges_itself() -> None:
    with pytest.raises(ConfigError, match="levels"):
        told("a: &a {<<: *a}\n")


def test_a_merge_bomb_is_bounded() -> None:
    lines = ["x0: &x0 {a: 1}"] + [f"x{n}: &x{n} {{<<: [{', '.join([f'*x{n - 1}'] * 9)}]}}" for n in range(1, 9)]
    began = time.process_time()
    with pytest.raises(ConfigError, match="more than"):
        read_yaml("\n".join(lines), {})
    assert time.process_time() - began < 5


def test_a_bomb_in_a_key_is_not_written_out() -> None:
    lines = ["x0: &x0 [a, a, a, a, a, a, a, a, a]"]
    lines += [f"x{n}: &x{n} [{', '.join([f'*x{n - 1}'] * 9)}]" for n in range(1, 9)]
    text = "\n".join(f"x-{line}" for line in lines) + "\n? *x8\n: 1\n"
    began = time.process_time()
    assert told(text) == [(9, "a list or mapping stands where a name is expected")]
    assert time.process_time() - began < 2


def test_numbers_of_base_60_are_text() -> None:
    assert values("a: 22:22\nb: 1:30.5\nc: 22\n") == {"a": "22:22", "b": "1:30.5", "c": 22}


@pytest.mark.parametrize("number", ["9" * 100_000, "1:" * 50_000 + "1", "0x" + "f" * 100_000, "1." + "0" * 100_000])
def test_a_number_that_takes_for_ever_is_not_read(number: str) -> None:
    began = time.process_time()
    assert f"more than {MAX_SCALAR} characters" in told(f"a: {number}\n")[0][1]
    assert time.process_time() - began < 2


@pytest.mark.parametrize("text", [r'a: "x\ud800y"', "a: ${ODD}"])
def test_text_that_cannot_be_encoded_is_refused_at_the_door(text: str) -> None:
    document = read_yaml(text, {"ODD": os.fsdecode(b"geheim\xe4")})
    assert "not UTF-8" in document.problems[0][1]
    remember(document.secrets)
    for secret in known():
        secret.encode("utf-8", "surrogatepass")


def test_a_byte_order_mark(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"\xef\xbb\xbfgeheim\n")
    secret.chmod(0o600)
    document = read_yaml("a: ${file:secret}\n", {}, tmp_path)
    assert document.values == {"a": "geheim"}


def test_a_pipe_that_nobody_writes_into_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streamd.security.trust.PIPE_S", 0.2)
    os.mkfifo(tmp_path / "pipe")
    assert read_yaml("a: ${file:pipe}\n", {}, tmp_path).values == {"a": ""}
    holder = os.open(tmp_path / "pipe", os.O_RDWR)
    try:
        began = time.monotonic()
        (_, problem), *_ = read_yaml("a: ${file:pipe}\n", {}, tmp_path).problems
        assert "nothing came out of the pipe" in problem
        assert time.monotonic() - began < 5
    finally:
        os.close(holder)


def test_a_pipe_that_somebody_writes_into_is_read(tmp_path: Path) -> None:
    """As the shell has it with <(...)."""
    os.mkfifo(tmp_path / "pipe")

    def write() -> None:
        with (tmp_path / "pipe").open("w") as pipe:
            for part in ("ge", "he", "im"):
                time.sleep(0.05)
                pipe.write(part)
                pipe.flush()

    reader_waits = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    thread = threading.Thread(target=write)
    thread.start()
    try:
        time.sleep(0.02)
        assert read_yaml("a: ${file:pipe}\n", {}, tmp_path).values == {"a": "geheim"}
    finally:
        thread.join()
        os.close(reader_waits)


@pytest.mark.parametrize(
    ("field", "value", "secret"),
    [
        ("path", "/models/none.onnx", False),
        ("url", "clip.mp4", False),
        ("url", "rtsp://10.0.0.7/live/KEY", True),
        ("url", "admin:geheim@10.0.0.7/x", True),
        ("password", "geheim/geheim", True),
        ("path", "prefix-${X}", True),
    ],
)
def test_a_file_that_the_environment_names_is_no_secret(field: str, value: str, secret: bool) -> None:
    """Messages have to name it, above all where it does not exist."""
    text, found = ("${X}", value) if "${" not in value else (value, "geheim")
    document = read_yaml(f"a: {{{field}: '{text}'}}", {"X": found})
    assert (found in document.secrets) == secret
