"""The suite of `streamd.testing.heads` on every built-in head: `contract_cases()` in its own test file."""

from __future__ import annotations

import pytest

from streamd.heads import HEADS
from streamd.testing.heads import HeadContract
from tests import contracts

globals().update(contracts.classes(HeadContract, HEADS, "tests.heads", "contract_cases", "cases"))


def test_a_kind_without_cases_is_told_what_to_write() -> None:
    with pytest.raises(LookupError, match=r"kind yolov99 has no test: write tests/heads/test_yolov99\.py"):
        contracts.gives("tests.heads", "yolov99", "contract_cases")
    with pytest.raises(
        LookupError, match=r"gives the contract suite nothing: write contract_cases in tests/heads/test_nms"
    ):
        contracts.gives("tests.heads", "nms", "contract_cases")
