"""The limit on open files."""

from __future__ import annotations

import subprocess
import sys

import pytest

_SCRIPT = """
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, ({soft}, {hard}))
from streamd.runtime.descriptors import raise_limit
raise_limit()
print(*resource.getrlimit(resource.RLIMIT_NOFILE))
"""


@pytest.mark.parametrize(("soft", "hard", "after"), [(256, 1024, 1024), (512, 512, 512), (64, 100, 100)])
def test_the_soft_limit_is_raised_to_the_hard_limit(soft: int, hard: int, after: int) -> None:
    script = _SCRIPT.format(soft=soft, hard=hard)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(after), str(hard)]
