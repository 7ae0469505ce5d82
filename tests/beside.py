"""More files at a time than there are processors: most tests wait, and a few calculate.

pytest-xdist starts as many workers as pyproject.toml says. As many of them as there are processors have one each, or a
share of them, and take files in their order. The others run beside them with what those leave of the processors: they
have a low priority, and take files only from the folders in `CALCULATE`, whose tests look at no clock.
"""

from __future__ import annotations

import contextlib
import os
from typing import Any

CALCULATE = (
    "tests/analysis/", "tests/engine/", "tests/fleet/", "tests/heads/", "tests/imaging/", "tests/models/",
    "tests/security/", "tests/settings/", "tests/cli/test_annotate.py", "tests/cli/test_build.py",
    "tests/cli/test_count.py", "tests/cli/test_overlay.py", "tests/configs/test_kubernetes.py",
    "tests/docs/test_documents.py", "tests/events/evidence/test_real_videos.py", "tests/test_floors.py",
    "tests/test_newest.py", "tests/test_units.py", "tests/tools/test_demo_model.py", "tests/tools/test_glance_eval.py",
    "tests/tools/test_health_eval.py", "tests/tools/test_lock.py", "tests/tools/test_track_eval.py",
)  # fmt: skip
"""Folders and files whose tests pass on a busy machine, only later: nothing in them has a limit of time."""

NICE = 10
"""A tenth of a processor that somebody else wants."""

low = False
"""Whether this process has a low priority."""


def runs_beside(worker: str, count: int, processors: int) -> bool:
    """Whether `worker`, gw0 and so on, of `count` has no processor of its own."""
    return int(worker.removeprefix("gw")) % count >= processors


def lower_session() -> None:
    """Lowers the session's priority: where Linux groups processes by session, theirs count only within it."""
    with contextlib.suppress(OSError), open("/proc/self/autogroup", "w") as group:
        group.write(str(NICE))


def _step_back() -> None:
    """Gives this process, and all that it starts, a low priority, in a session of its own."""
    global low
    low = True
    os.nice(NICE)
    with contextlib.suppress(OSError):
        os.setsid()
        lower_session()


def take_place(workerinput: dict[str, Any]) -> None:
    """Gives this worker of pytest-xdist its processors, and with them the daemons that its tests start.

    Quantising a model would otherwise starve the cameras of the tests beside it.
    """
    worker, count = workerinput["workerid"], workerinput["workercount"]
    processors = sorted(os.sched_getaffinity(0))
    if runs_beside(worker, count, len(processors)):
        _step_back()
    else:
        own = min(count, len(processors))
        os.sched_setaffinity(0, processors[int(worker.removeprefix("gw")) % count :: own])
