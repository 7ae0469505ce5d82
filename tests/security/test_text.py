"""Text from others, as it is printed."""

from __future__ import annotations

import pytest

from streamd.security.text import MAX_TEXT, plain, visible


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("person", "person"), ("Ж\"ünï\n日", "Ж\"ünï?日"), ("\x1b[2Jcar", "?[2Jcar"), ("a\u202eb", "a?b"),
        ("x" * 300, "x" * MAX_TEXT),
    ],
)  # fmt: skip
def test_plain(text: str, shown: str) -> None:
    assert plain(text) == shown


def test_a_terminal_obeys_nothing() -> None:
    assert visible("a\x1b[2J\x9b1m\x07\rb\r\nc\td\x7fé") == "a?[2J?1m??b\r\nc\td?é"
