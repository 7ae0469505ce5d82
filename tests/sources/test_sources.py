"""What no line of the code may do: run a shell, evaluate text, or load data that can carry code."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted([*(ROOT / "streamd").rglob("*.py"), *(ROOT / "tools").rglob("*.py")])
MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "jsonpickle"}
CALLS = {
    "eval", "exec", "compile", "__import__", "os.system", "os.popen", "subprocess.getoutput",
    "subprocess.getstatusoutput", "yaml.load", "yaml.load_all", "yaml.unsafe_load", "yaml.full_load",
    "tempfile.mktemp", "torch.load",
}  # fmt: skip
"""torch.load: tools only, and there with weights_only=True; see `forbidden`."""


def dotted(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def given(call: ast.Call, name: str) -> ast.expr | None:
    return next((k.value for k in call.keywords if k.arg == name), None)


def is_true(node: ast.expr | None) -> bool:
    return isinstance(node, ast.Constant) and node.value is True


def forbidden(text: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            yield from (f"{node.lineno}: imports {name}" for name in names if name.split(".")[0] in MODULES)
            if isinstance(node, ast.ImportFrom):
                full = [f"{node.module}.{a.name}" for a in node.names]
                yield from (f"{node.lineno}: imports {name}" for name in full if name in CALLS)
        elif isinstance(node, ast.Call):
            name = dotted(node.func)
            if name == "torch.load" and is_true(given(node, "weights_only")):
                continue
            if name in CALLS:
                yield f"{node.lineno}: calls {name}"
            shell = given(node, "shell")
            if shell is not None and not (isinstance(shell, ast.Constant) and shell.value is False):
                yield f"{node.lineno}: shell="
            pickles = given(node, "allow_pickle")
            if pickles is not None and not (isinstance(pickles, ast.Constant) and pickles.value is False):
                yield f"{node.lineno}: allow_pickle="


def test_no_shell_no_pickle_no_evaluated_text() -> None:
    assert len(SOURCES) > 50
    assert [f"{path.relative_to(ROOT)}:{what}" for path in SOURCES for what in forbidden(path.read_text())] == []


@pytest.mark.parametrize(
    "line",
    [
        "import pickle", "from marshal import loads", "import os; os.system('x')", "from os import system",
        "subprocess.run('x', shell=True)", "subprocess.Popen(x, shell=y)", "yaml.load(f)", "yaml.unsafe_load(f)",
        "eval('1')", "exec(x)", "numpy.load(f, allow_pickle=True)", "torch.load(f)",
        "torch.load(f, weights_only=False)", "from yaml import load", "__import__(name)",
    ],
)  # fmt: skip
def test_each_of_them_would_be_found(line: str) -> None:
    assert list(forbidden(line))


@pytest.mark.parametrize(
    "line",
    [
        "yaml.compose(t)",
        "yaml.safe_load(t)",
        "ast.literal_eval(t)",
        "re.compile(t)",
        "model.eval()",
        "run(x, shell=False)",
    ],
)
def test_and_nothing_else(line: str) -> None:
    assert list(forbidden(line)) == []
