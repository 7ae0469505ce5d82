"""What is shipped: a wheel with all that a user needs, the same one from the sdist, and it runs."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from streamd import __version__
from tests.conftest import ROOT
from tests.docs.plugins import passed

PLUGIN = ROOT / "tests" / "compat" / "plugins" / "v1"

SHIPPED = [
    "streamd/py.typed",
    "streamd/README.md",
    *(f"streamd/testing/{part}.py" for part in ("sources", "engines", "heads", "trackers", "sinks")),
    "streamd/engine/tensorrt/kernels.cu",
    "streamd/engine/tensorrt/kernels.ptx",
    *(f"streamd/assets/{file.name}" for file in (ROOT / "streamd" / "assets").glob("*")),
    *(f"streamd/web/static/{file.name}" for file in (ROOT / "streamd" / "web" / "static").iterdir()),
]
BESIDE = [
    *("systemd/streamd@.service", "systemd/streamd.target", "systemd/README.md"),
    *("configs/example.yaml", "configs/prometheus.yml", "configs/alerts.yml", "configs/grafana/streamd.json"),
    *("configs/docker/cpu.Dockerfile", "configs/docker/gpu.Dockerfile", "configs/docker/compose.yaml"),
    *("docs/configuration.md", "docs/operations.md", "docs/messages.schema.json", "docs/examples/follow.py"),
]
"""Below share/streamd."""


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist, the wheel made from it, and tree/: the wheel made from the tree."""
    folder = tmp_path_factory.mktemp("dist")
    tree = folder / "source"
    tree.mkdir()
    for name in ("pyproject.toml", "README.md", "CHANGELOG.md", "LICENSE", "streamd", "configs", "systemd", "docs"):
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, tree / name, ignore=shutil.ignore_patterns("__pycache__", "node_modules"))
        else:
            shutil.copy(source, tree)
    for options in (["--wheel", "--outdir", folder / "tree"], ["--outdir", folder]):
        command = [sys.executable, "-m", "build", *map(str, options), str(tree)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=200)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
        shutil.rmtree(tree / "build", ignore_errors=True)
    return folder


def test_dockerfiles_copy_what_is_there() -> None:
    for file in (ROOT / "configs" / "docker").glob("*.Dockerfile"):
        copied = [w for line in re.findall(r"^COPY (?!--from)(.*)", file.read_text(), re.M) for w in line.split()[:-1]]
        assert copied
        assert not [name for name in copied if not (ROOT / name).exists()]


def content(wheel: Path) -> dict[str, int]:
    """Name -> checksum."""
    with zipfile.ZipFile(wheel) as opened:
        return {i.filename: i.CRC for i in opened.infolist() if not i.filename.endswith("/RECORD")}


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_the_wheel_holds_what_is_needed_and_the_sdist_builds_the_same(dist: Path) -> None:
    name = next(dist.glob("*.whl")).name
    # One for all versions of Python: the compiled part uses nothing of it.
    assert re.fullmatch(rf"streamd-{__version__}-cp310-abi3-linux_\w+\.whl", name)
    held = content(dist / name)
    for built in ("analysis/tracking/_bytetrack", "analysis/glance/_glance", "engine/tensorrt/_glance"):
        assert f"streamd/{built}.abi3.so" in held
    share = f"streamd-{__version__}.data/data/share/streamd/"
    missing = {*SHIPPED, *(share + name for name in BESIDE)} - set(held)
    assert not missing
    modules = {str(p.relative_to(ROOT)) for p in (ROOT / "streamd").rglob("*.py")}
    assert {n for n in held if n.endswith(".py") and "/share/" not in n} == modules
    assert not [n for n in held if n.startswith(("tests", "tools"))]
    assert content(dist / "tree" / name) == held
    assert (dist / f"streamd-{__version__}.tar.gz").exists()


@pytest.fixture(scope="module")
def venv(dist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the wheel, and nothing of the checkout."""
    folder = tmp_path_factory.mktemp("installed")
    venv = folder / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(venv)], check=True, timeout=60)
    python = venv / "bin" / "python"
    wheel = next(dist.glob("*.whl"))
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps", "--no-index", str(wheel)]
    subprocess.run(pip, check=True, capture_output=True, timeout=100)
    # Its dependencies are those that these tests run with: they come after what was installed.
    installed = next((venv / "lib").glob("python*/site-packages"))
    (installed / "dependencies.pth").write_text("\n".join(p for p in sys.path if p.endswith("site-packages")))
    where = [str(python), "-c", "import streamd; print(streamd.__file__)"]
    assert str(venv) in subprocess.run(where, check=True, capture_output=True, text=True, cwd=folder).stdout
    assert (venv / "share" / "streamd" / "systemd" / "streamd@.service").exists()
    return venv


@pytest.fixture
def outside(venv: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same for programs that this test starts."""
    for name in [name for name in os.environ if name.startswith(("PYTHON", "PYTEST_", "STREAMD_"))]:
        monkeypatch.delenv(name)
    return venv


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_what_was_installed_from_the_wheel_runs_the_demo(venv: Path, tmp_path: Path) -> None:
    command = [str(venv / "bin" / "streamd"), "demo", "--for", "12", "--port", "0"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "road6 on" in done.stdout
    seen = {label: int(n) for n, label in re.findall(r"(\d+) (\w+)", done.stdout.rsplit("boxes in all frames: ", 1)[1])}
    assert seen["car"] > 0
    assert seen["person"] > 0


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_plugin_of_version_1_works_and_its_tests_run_without_a_checkout(outside: Path, tmp_path: Path) -> None:
    python, package = outside / "bin" / "python", tmp_path / "package"
    shutil.copytree(PLUGIN, package)
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps", "--no-index"]
    done = subprocess.run([*pip, "--no-build-isolation", str(package)], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    kinds = [str(outside / "bin" / "streamd"), "kinds", "--json"]
    listed = json.loads(subprocess.run(kinds, check=True, capture_output=True, text=True, cwd=tmp_path).stdout)
    own = [each for kinds in listed.values() for each in kinds if each["package"] == "streamd-five 1.0"]
    assert [each["kind"] for each in own] == ["bars", "plain", "scored", "nearest", "datagrams"]
    assert {each["contract"] for each in own} == {1}
    tests = tmp_path / "tests" / "test_five.py"
    tests.parent.mkdir()
    shutil.copy(package / "test_five.py", tests)
    with tests.open("a") as file:  # the suites are those of the wheel
        file.write(f"\n\ndef test_where(): assert __import__('streamd').__file__.startswith({str(outside)!r})\n")
    assert re.fullmatch(r"11\d passed, 1 skipped", passed(tests, str(python), 300))
