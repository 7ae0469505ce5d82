"""What the commands have in common on a terminal."""

from __future__ import annotations

import os
import subprocess
import sys

from streamd.cli.console import enumerated


def test_numbers_of_things_are_in_the_same_order_in_every_line() -> None:
    assert enumerated({"car": 1, "truck": 2, "person": 2}) == "2 person, 2 truck, 1 car"
    assert enumerated({"car": 1, "truck": 2, "person": 2}, 1) == "2 person"
    assert enumerated({}) == ""


def test_a_paragraph_is_broken_between_words_on_a_terminal_only() -> None:
    script = "from streamd.cli.console import say; say('title   ' + 'word ' * 20 + '/' + 'a' * 50, 8)"
    piped = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert piped == "title   " + "word " * 20 + "/" + "a" * 50 + "\n"
    shown, terminal = os.openpty()
    environment = os.environ | {"COLUMNS": "50"}
    subprocess.run([sys.executable, "-c", script], stdout=terminal, env=environment, check=True)
    os.close(terminal)
    lines = os.read(shown, 4096).decode().splitlines()
    os.close(shown)
    words = [("title   " if i == 0 else " " * 8) + "word " * 8 for i in range(2)] + [" " * 8 + "word " * 4]
    assert lines == [*(line.rstrip() for line in words), " " * 8 + "/" + "a" * 50]
