"""More files at a time than there are processors, since most tests wait more than they calculate.

pytest-xdist starts as many workers as pyproject.toml says. As many of them as there are processors have one each, or a
share of them, and take any file, those first that only they take. The next two have no processor of their own, and take
the files that `WAIT` names. The others run beside them with what those leave of the processors: they have a low
priority, and take the files that `BESIDE` names. Who has nothing else left takes these, too, then with the same
priority: else those that were begun before would hardly go on.
"""

from __future__ import annotations

import contextlib
import os
from typing import Any

BESIDE = (
    "tests/models/test_quantize.py::test_the_promise", "tests/models/", "tests/behaviour/test_evidence",
    "tests/cli/test_build.py", "tests/analysis/", "tests/config/", "tests/configs/", "tests/docs/", "tests/engine/",
    "tests/fleet/", "tests/heads/", "tests/imaging/", "tests/security/", "tests/settings/", "tests/test_",
    *(f"tests/behaviour/test_{name}.py" for name in ("bundle", "events", "integrations", "port", "secrets")),
    *(f"tests/cli/test_{name}.py" for name in (
        "annotate", "board", "check", "count", "demo", "detect", "events", "fleetrun", "overlay", "run")),
    *(f"tests/events/test_{name}.py" for name in ("place", "query", "record", "retry", "schema", "store", "upkeep")),
    *(f"tests/events/evidence/test_{name}.py" for name in ("real_videos", "sound")),
    *(f"tests/tools/test_{name}.py" for name in (
        "bench_journal", "demo_model", "glance_eval", "health_eval", "lock", "track_eval")),
)  # fmt: skip
"""How the paths of those files begin whose tests pass on a busy machine, only later: they measure neither a rate nor a
delay, and what they wait for has ten seconds and more. The longest come first."""

WAIT = (
    "tests/workers/fleet/test_ends.py", "tests/sources/test_reading_slowly.py", "tests/sources/test_accounts.py",
    "tests/workers/", "tests/events/evidence/test_clips.py", "tests/faults/test_reconnects.py",
    "tests/faults/test_sources.py", "tests/sources/",
    *(f"tests/sinks/test_{name}.py" for name in ("curve", "homeassistant", "mqtt", "nats", "redis", "webhook")),
    *(f"tests/events/test_{name}.py" for name in ("channel", "cursors", "journal", "link", "wallclock")),
    *(f"tests/events/evidence/test_{name}.py" for name in ("keeper", "snapshots")),
)  # fmt: skip
"""How the paths of those files begin whose tests wait nearly all the time: together they use about a tenth of a
processor. The longest come first."""

APART = (
    "tests/behaviour/", "tests/cli/", "tests/models/test_evaluate.py", "tests/models/test_quantize.py",
    "tests/workers/fleet/test_ends.py", "tests/workers/test_starting.py",
)  # fmt: skip
"""How the paths of those files begin whose tests several workers may take: they are long, and share no fixture."""

WAITERS = 2
"""Workers that take only those."""

NICE = 10
"""A tenth of a processor that somebody else wants."""

PATIENCE_S = 600
"""How long one of their tests may take: with a tenth of a processor, one that calculates for seven seconds took 120."""

low = False
"""Whether this process has a low priority."""

_shared = False
"""Whether there are more workers than processors."""


def takes(worker: str, count: int, processors: int) -> tuple[str, ...] | None:
    """How the paths of those files begin that `worker`, gw0 and so on, of `count` takes; None if it takes any."""
    number = int(worker.removeprefix("gw")) % count
    if number < processors:
        return None
    return WAIT if number < processors + WAITERS else BESIDE


def lower_session() -> None:
    """Lowers the session's priority: where Linux groups processes by session, theirs count only within it."""
    with contextlib.suppress(OSError), open("/proc/self/autogroup", "w") as group:
        group.write(str(NICE))


def steps_back(test: str) -> bool:
    """Is told of each test before it begins; whether this process has a low priority from now on."""
    if not _shared or low or not test.startswith(BESIDE):
        return False
    _step_back()
    return True


def limit_s(test: str) -> int | None:
    """Seconds after which a test is given up; None for the usual number."""
    return PATIENCE_S if _shared and test.startswith(BESIDE) else None


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
    global _shared
    worker, count = workerinput["workerid"], workerinput["workercount"]
    processors = sorted(os.sched_getaffinity(0))
    _shared = count > len(processors)
    files = takes(worker, count, len(processors))
    if files is BESIDE:
        _step_back()
    elif files is None:
        own = min(count, len(processors))
        os.sched_setaffinity(0, processors[int(worker.removeprefix("gw")) % count :: own])
