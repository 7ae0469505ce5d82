"""PyAV is imported by the first streams that need it, in several threads at once."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import streamd
from tests.clips import write_clip

OPENING = """
import sys, threading
from streamd.sources import open_source
from streamd.sources.av import AvStreamSettings
from streamd.sources.synthetic import SyntheticStreamSettings

sources = [open_source(AvStreamSettings(id=f"a{i}", url=sys.argv[1])) for i in range(2)]
sources += [open_source(SyntheticStreamSettings(id=f"s{i}")) for i in range(2)]
assert "av" not in sys.modules
sys.setswitchinterval(1e-5)
begin, failed = threading.Barrier(len(sources)), []

def run(source):
    begin.wait()
    try:
        source.open()
    except BaseException as error:
        failed.append(repr(error))

threads = [threading.Thread(target=run, args=(source,)) for source in sources]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
assert not failed, failed
"""


@pytest.mark.parametrize("attempt", range(4))
def test_streams_that_open_at_once(tmp_path: Path, attempt: int) -> None:
    clip = write_clip(tmp_path / "a.mp4", frames=5)
    done = subprocess.run([sys.executable, "-c", OPENING, str(clip)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


LATER = ["sources/picture.py"]
"""Where a picture is at hand, PyAV has been imported. This is done for each of them."""


def modules_first(tree: ast.Module) -> Iterator[int]:
    """Lines of functions that import a module of PyAV, but not the package before."""
    for function in ast.walk(tree):
        if not isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        known = False
        imports = (node for node in ast.walk(function) if isinstance(node, (ast.Import, ast.ImportFrom)))
        for node in sorted(imports, key=lambda node: node.lineno):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            known |= "av" in names
            if not known and any(name.startswith("av.") for name in names):
                yield node.lineno


def test_the_package_is_imported_before_its_modules() -> None:
    """A thread that imports a module holds that one's lock while it waits for the package, and the thread that imports
    the package then gets the module half done."""
    root = Path(streamd.__file__).parent
    found = [
        f"{path.relative_to(root)}:{line}"
        for path in sorted(root.rglob("*.py"))
        if str(path.relative_to(root)) not in LATER
        for line in modules_first(ast.parse(path.read_text()))
    ]
    assert found == []
