"""The lock file answers pyproject.toml, and what would not is found; an audit says what it does not know."""

from __future__ import annotations

import re
from typing import Any

import pytest
from audit import verdict
from lock import LOCK, pins, problems

from tests.conftest import ROOT

PROJECT = (ROOT / "pyproject.toml").read_text()
TEXT = LOCK.read_text()


def test_it_answers_the_project() -> None:
    assert list(problems(PROJECT, TEXT)) == []
    names = {pin.name for pin in pins(TEXT)}
    assert {"av", "numpy", "pyzmq", "pydantic", "pydantic-core"} <= names


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ((r"^pyzmq==\S+", "pyzmq==25.0"), "pyzmq==25.0 does not satisfy pyzmq>=26.0 on Python 3.10, x86_64"),
        ((r"^pyzmq==\S+", "other==1.0"), "pyzmq is not pinned on Python 3.13, aarch64"),
        ((r"^(numpy==\S+ ; python_full_version >= '3.1)2'", r"\g<1>3'"), "numpy is not pinned on Python 3.12"),
        ((r"^(numpy==\S+) ; python_full_version >= '3.12'", r"\1"), "numpy is pinned to"),
        ((r"(^structlog==\S+ \\\n)(    --hash=\S+( \\)?\n)+", r"structlog==99\n"), "structlog==99 has no hash"),
        ((r"^pyzmq==\S+", "pyzmq>=26"), "pyzmq>=26: expected NAME==VERSION"),
        ((r"\A", "--index-url https://example.org/simple\n"), "names a host"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_found(change: tuple[str, str], expected: str) -> None:
    changed, count = re.subn(*change, TEXT, flags=re.MULTILINE)
    assert count >= 1
    found = list(problems(PROJECT, changed))
    assert any(expected in problem for problem in found), found


def package(name: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "version": "1.0", **(more or {"vulns": []})}


FINDING = {"id": "PYSEC-1", "fix_versions": ["1.1"], "aliases": [], "description": ""}


@pytest.mark.parametrize(
    ("answers", "required", "code", "text"),
    [
        ([[package("a")], None], False, 0, "1 packages audited"),
        ([[package("a", vulns=[FINDING])], None], False, 1, "FOUND PYSEC-1 in a 1.0; fixed in: 1.1"),
        ([[package("a", skip_reason="unknown")], [package("a", vulns=[FINDING])]], False, 1, "FOUND PYSEC-1"),
        ([[package("a", skip_reason="unknown"), package("b")], None], False, 0, "SKIPPED 1 of 2"),
        ([[package("a", skip_reason="unknown")], [package("a")]], True, 0, "1 packages audited"),
        ([None, None], False, 0, "nothing was audited"),
        ([None, None], True, 1, "nothing was audited"),
        ([[package("a", skip_reason="unknown")], None], True, 1, "SKIPPED 1 of 1"),
    ],
)
def test_an_audit_fails_for_findings_and_is_honest_about_the_rest(
    answers: list[Any], required: bool, code: int, text: str
) -> None:
    found, lines = verdict(answers, required=required)
    assert found == code
    assert text in "\n".join(lines)
