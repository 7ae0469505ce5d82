"""The house stands: imports go downward only, and a vendor is imported where its room opens, nowhere else."""

from __future__ import annotations

import ast
import functools
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "streamd"
FLOORS = {
    room: floor
    for floor, rooms in enumerate(
        [
            ("errors", "types"),
            ("security", "settings"),
            # Arrays and nothing else: the flow and the configuration of streams build on it.
            ("telemetry", "analysis"),
            ("flow",),
            # Below the sinks, which deliver from the journal's cursors.
            ("imaging", "events"),
            ("sources", "engine", "heads", "sinks", "fleet"),
            # Offline, and never imported by the daemon: it may look into the rooms that it measures.
            ("models",),
            ("config",),
            ("web",),
            ("runtime",),
            ("workers",),
            ("cli", "testing"),
            ("__main__",),
        ]
    )
    for room in rooms
}
VENDORS = ("av", "cv2", "openvino", "onnx", "onnxruntime", "tensorrt", "tensorrt_rtx", "pycuda", "cuda", "zmq", "rich",
           "pycocotools", "paho", "nats", "ray", "torch")  # fmt: skip
MODULES = sorted(PACKAGE.rglob("*.py"))


def room(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def room_of(path: Path) -> str:
    return room("streamd." + str(path.relative_to(PACKAGE).with_suffix("")).replace("/", "."))


def _is_module(name: str) -> bool:
    path = PACKAGE.parent / name.replace(".", "/")
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


@functools.cache
def imports(path: Path) -> list[tuple[str, bool]]:
    """(module, at run time) for every import of streamd's own."""
    tree = ast.parse(path.read_text())
    typing_only = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If)
        and any(getattr(part, "id", getattr(part, "attr", "")) == "TYPE_CHECKING" for part in ast.walk(block.test))
        for node in ast.walk(block)
    }
    found = []
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module:
            # `from package import module` is an import of the module.
            whole = [f"{node.module}.{alias.name}" for alias in node.names]
            names = list(dict.fromkeys(name if _is_module(name) else node.module for name in whole))
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        found += [(name, id(node) not in typing_only) for name in names if name.split(".")[0] == "streamd"]
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_downward(path: Path) -> None:
    own = room_of(path)
    if own == "__init__":
        return
    for name, _ in imports(path):
        other = room(name)
        if other in ("__init__", own):
            continue
        assert FLOORS[other] < FLOORS[own], f"{path.name} ({own}) imports {name}"


def test_every_room_has_a_floor() -> None:
    rooms = {p.stem if p.is_file() else p.name for p in PACKAGE.iterdir() if p.suffix == ".py" or list(p.glob("*.py"))}
    assert rooms - {"__pycache__", "__init__"} <= set(FLOORS)


def test_there_are_few_rooms() -> None:
    # The contract suites are no part of the daemon.
    assert len(set(FLOORS) - {"__main__", "testing"}) <= 20


def test_no_modules_import_each_other_in_a_circle() -> None:
    """At run time: what only the type checker reads may look back."""
    names = {
        "streamd." + str(p.relative_to(PACKAGE).with_suffix("")).replace("/", ".").removesuffix(".__init__"): p
        for p in MODULES
    }
    graph = {
        name: {other for other, at_run_time in imports(path) if at_run_time and other in names and other != name}
        for name, path in names.items()
    }
    done: set[str] = set()

    def visit(name: str, way: list[str]) -> None:
        assert name not in way, " -> ".join([*way[way.index(name) :], name])
        if name not in done:
            for other in sorted(graph[name]):
                visit(other, [*way, name])
            done.add(name)

    for name in sorted(graph):
        visit(name, [])


def test_the_map_has_the_same_floors() -> None:
    rows = re.findall(r"^\| (\d+) \| (.*) \|$", (PACKAGE / "README.md").read_text(), re.MULTILINE)
    floors = max(FLOORS.values())  # the top one is __main__
    listed: dict[str, int] = {}
    for number, row in rows[:floors]:
        listed |= dict.fromkeys(re.findall(r"`(\w+)/?`", row), int(number))
    assert {room: listed.get(room) for room in FLOORS if room != "__main__"} == {
        room: floor for room, floor in FLOORS.items() if room != "__main__"
    }


def test_the_daemon_never_imports_the_offline_room() -> None:
    code = "import streamd.runtime.daemon, sys; print([m for m in sys.modules if m.startswith('streamd.models')])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_nothing_imports_the_suites_or_pytest() -> None:
    importers = [str(path) for path in MODULES if room_of(path) != "testing" for name, _ in imports(path)
                 if name.startswith("streamd.testing")]  # fmt: skip
    assert not importers
    code = "import streamd.__main__, streamd.runtime.daemon, sys; print({'pytest', 'streamd.testing'} & {*sys.modules})"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


def test_without_pytest_the_suites_say_what_they_need() -> None:
    code = "import sys; sys.modules['pytest'] = None; import streamd.testing.sinks"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert told.stderr.splitlines()[-1] == "ImportError: streamd.testing needs pytest: pip install 'streamd[testing]'"


def test_every_module_imports_without_any_vendor() -> None:
    names = [
        "streamd." + str(p.relative_to(PACKAGE).with_suffix("")).replace("/", ".").removesuffix(".__init__")
        for p in MODULES
        if p.name != "__main__.py" and p != PACKAGE / "__init__.py"
    ]
    code = (
        "import sys, importlib\n"
        f"for v in {VENDORS!r}: sys.modules[v] = None\n"
        f"for n in {names!r}: importlib.import_module(n)\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-600:]
