"""Files that somebody else could change are refused, one clear error each; no file is read without end."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from streamd.config.loader import load
from streamd.engine import BatchSettings, ModelSettings
from streamd.engine.model import MAX_MODEL_BYTES, model_file, read_labels
from streamd.engine.openvino import OpenVinoBackend, OpenVinoSettings
from streamd.engine.sidecar import MAX_BYTES, read_sidecar
from streamd.errors import ConfigError, ModelError, StreamdError
from streamd.security import trust
from streamd.security.trust import VARIABLE, distrust, read_bytes, read_text
from tests.engine.onnx_models import conv_relu

STRANGER = 12_345
root_only = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to somebody else")


@pytest.fixture(autouse=True)
def _on_a_machine_with_other_users(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trust, "in_container", lambda: False)
    monkeypatch.delenv(VARIABLE, raising=False)


def config(folder: Path) -> Path:
    path = folder / "c.yaml"
    path.write_text("model: {path: m.onnx}\nstreams: [{id: a, url: 'rtsp://x:${file:secret}@h/'}]\n")
    path.chmod(0o600)
    secret = folder / "secret"
    secret.write_text("geheim-1\n")
    secret.chmod(0o600)
    return path


def plan(path: Path) -> Any:
    from streamd.engine.tensorrt.runtime import Plan

    return Plan(path, None, None)


FILES: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "configuration": ("c.yaml", lambda folder: load(folder / "c.yaml", {})),
    "secret": ("secret", lambda folder: load(folder / "c.yaml", {})),
    "model": ("m.onnx", lambda folder: model_file(str(folder / "m.onnx"))),
    "weights": ("m.bin", lambda folder: model_file(str(folder / "m.xml"))),
    "sidecar": ("m.onnx.json", lambda folder: read_sidecar(folder / "m.onnx")),
    "labels": ("names.txt", lambda folder: read_labels(str(folder / "names.txt"))),
    "plan": ("m.plan", lambda folder: plan(folder / "m.plan")),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    config(tmp_path)
    for name, content in (("m.onnx", "x"), ("m.xml", "x"), ("m.bin", "x"), ("m.onnx.json", "{}"), ("names.txt", "a\n")):
        (tmp_path / name).write_text(content)
        (tmp_path / name).chmod(0o644)
    (tmp_path / "m.plan").write_bytes(b"x")
    return tmp_path


@pytest.mark.parametrize("kind", FILES)
def test_what_anybody_may_change_is_refused(folder: Path, kind: str) -> None:
    name, use = FILES[kind]
    if kind != "plan":
        use(folder)
    (folder / name).chmod(0o666)
    with pytest.raises(StreamdError, match=rf"{name}: every user may change it \(mode 0666\); chmod o-w it"):
        use(folder)


@root_only
@pytest.mark.parametrize("kind", FILES)
def test_what_belongs_to_somebody_else_is_refused(folder: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name, use = FILES[kind]
    os.chown(folder / name, STRANGER, 0)
    with pytest.raises(
        StreamdError, match=rf"{name}: belongs to user {STRANGER}, .*chown it to root, or set {VARIABLE}="
    ):
        use(folder)
    if kind == "plan":
        return
    monkeypatch.setenv(VARIABLE, f"4711, {STRANGER}")
    use(folder)
    monkeypatch.delenv(VARIABLE)
    monkeypatch.setattr(trust, "in_container", lambda: True)
    use(folder)  # whoever mounted it decided whose it is
    (folder / name).chmod(0o646)
    with pytest.raises(StreamdError, match="every user may change it"):
        use(folder)


@root_only
def test_a_group_may_write_where_it_is_ours_or_roots(tmp_path: Path) -> None:
    file = tmp_path / "f"
    file.write_text("x")
    file.chmod(0o664)
    assert distrust(file.stat()) is None
    os.chown(file, 0, STRANGER)
    assert distrust(file.stat()) == f"everybody in group {STRANGER} may change it (mode 0664); chmod g-w it"
    file.chmod(0o644)
    assert distrust(file.stat()) is None


@root_only
def test_another_user_trusts_root_and_itself(tmp_path: Path) -> None:
    file = tmp_path / "f"
    file.write_text("x")
    judge = (
        "import os, sys; from streamd.security import trust; trust.in_container = lambda: False; os.setgid(12345);"
        "os.setuid(12345); print(trust.distrust(os.stat_result(map(int, sys.argv[1].split(',')))))"
    )

    def verdict() -> str:
        numbers = ",".join(map(str, file.stat()))
        return subprocess.run([sys.executable, "-c", judge, numbers], capture_output=True, text=True, check=True).stdout

    assert verdict() == "None\n"
    os.chown(file, STRANGER, STRANGER)
    file.chmod(0o664)
    assert verdict() == "None\n"
    os.chown(file, 1, STRANGER)
    assert f"chown it to root or user {STRANGER}, or set" in verdict()


def test_the_command_says_it_in_one_line(folder: Path) -> None:
    (folder / "c.yaml").chmod(0o602)
    done = subprocess.run(
        [sys.executable, "-m", "streamd", "check", str(folder / "c.yaml")], capture_output=True, text=True
    )
    assert done.returncode == ConfigError.exit_code
    assert done.stdout == f"{folder}/c.yaml: every user may change it (mode 0602); chmod o-w it\n"


def test_openvinos_cache_is_code_too(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    cache.mkdir()
    model = conv_relu(tmp_path / "m.onnx")
    settings = OpenVinoSettings(cache_dir=str(cache))
    OpenVinoBackend(settings, ModelSettings(path=str(model)), batch=BatchSettings()).start()
    cache.chmod(0o777)
    with pytest.raises(ConfigError, match=r"engine\.cache_dir .*: every user may change it"):
        OpenVinoBackend(settings, ModelSettings(path=str(model)), batch=BatchSettings()).start()


def test_nothing_is_read_without_end(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"larger than 1000 bytes; expected a poem"):
        read_bytes(Path("/dev/zero"), 1000, what="/dev/zero", expected="a poem")
    for name, limit, use in (
        ("m.onnx.json", MAX_BYTES, lambda: read_sidecar(tmp_path / "m.onnx")),
        ("names.txt", 1 << 20, lambda: read_labels(str(tmp_path / "names.txt"))),
        ("m.onnx", MAX_MODEL_BYTES, lambda: model_file(str(tmp_path / "m.onnx"))),
        ("m.plan", MAX_MODEL_BYTES, lambda: model_file(str(tmp_path / "m.plan"))),
    ):
        with (tmp_path / name).open("wb") as file:
            file.truncate(limit + 1)  # a hole: no disk, no memory
        error = ModelError if limit == MAX_MODEL_BYTES else ConfigError
        with pytest.raises(error, match=rf"{name}: larger than {limit} bytes"):
            use()


@pytest.mark.parametrize(
    ("tag", "permissions", "mask", "trusted"),
    [(2, 6, 6, False), (2, 6, 4, True), (2, 4, 6, True), (8, 6, 6, False), (8, 4, 6, True)],
)
def test_an_access_control_list_that_lets_others_write(
    tmp_path: Path, tag: int, permissions: int, mask: int, trusted: bool
) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("x")
    path.chmod(0o600)
    none = 0xFFFFFFFF
    entries = [(1, 6, none), (2, 4, 54_320), (4, 0, none), (16, mask, none), (32, 0, none)]
    entries.insert(2 if tag == 2 else 3, (tag, permissions, 54_321))
    acl = struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)
    try:
        os.setxattr(path, "system.posix_acl_access", acl)
    except OSError as error:
        pytest.skip(f"no access control lists here: {error.strerror}")
    path.chmod(path.stat().st_mode & 0o707 | (mask << 3))
    os.chown(path, -1, os.getegid())
    if trusted:
        assert read_text(path, 100, what="c", expected="text") == "x"
        return
    with pytest.raises(ConfigError, match=r"54321.* may change it by an access control list; setfacl -x [ug]:54321"):
        read_text(path, 100, what="c", expected="text")
