"""What reconnects leave behind; `tools/reconnects.py` does the same a thousand times, and measures memory."""

from __future__ import annotations

from pathlib import Path

import pytest
from reconnects import measure


@pytest.mark.slow
def test_descriptors_and_threads_return(tmp_path: Path) -> None:
    found = measure(tmp_path, times=60, warm_up=20, steps=1)
    (reconnects, before), (later, after) = found
    assert later - reconnects >= 60
    assert (after.fds, after.threads) == (before.fds, before.threads)
    assert after.rss - before.rss < 2e6  # it differs by 0.6 MB from look to look; a decoder has 1.1 MB
