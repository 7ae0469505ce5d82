"""What the commands have in common on a terminal."""

from __future__ import annotations

from streamd.cli.console import enumerated


def test_numbers_of_things_are_in_the_same_order_in_every_line() -> None:
    assert enumerated({"car": 1, "truck": 2, "person": 2}) == "2 person, 2 truck, 1 car"
    assert enumerated({"car": 1, "truck": 2, "person": 2}, 1) == "2 person"
    assert enumerated({}) == ""
