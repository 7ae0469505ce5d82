"""Where tests find real models, images and clips."""

from __future__ import annotations

import logging
import os
import shutil
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import hypothesis
import pytest
import structlog

from streamd.security.redact import forget
from tests import contracts, launch

ROOT = Path(__file__).resolve().parent.parent
DATA = Path(os.environ.get("STREAMD_TEST_DATA", ROOT.parent / "shared"))


# No test may depend on how fast the machine is.
hypothesis.settings.register_profile("streamd", deadline=None)
hypothesis.settings.load_profile("streamd")


def absent(message: str) -> NoReturn:
    """Skips the test for want of something; fails it in CI, where everything is to be there."""
    if os.environ.get("CI"):
        pytest.fail(message)
    pytest.skip(message)


def shared(path: str) -> Path:
    """The test material at `path` below the data folder."""
    found = DATA / path
    if not found.exists():
        absent(f"test material {path} is not in {DATA}; set STREAMD_TEST_DATA to the folder that has it")
    return found


def program(name: str, package: str) -> str:
    """Where an installed program is."""
    found = shutil.which(name)
    if found is None:
        absent(f"{name} is not installed (Debian's package {package})")
    return found


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--case",
        action="append",
        default=[],
        metavar="KIND=MODULE",
        help="run the contract suites on a kind of another installed package; MODULE has its cases (may be repeated)",
    )


def _take_own_processors() -> None:
    """Gives this process of pytest-xdist processors of its own, and with them the daemons that its tests start.

    Quantising a model would otherwise starve the cameras of the tests beside it.
    """
    name, number = os.environ.get("PYTEST_XDIST_WORKER", ""), os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")
    processors = sorted(os.sched_getaffinity(0))
    if name.startswith("gw") and name[2:].isdigit() and len(processors) >= int(number) > 1:
        os.sched_setaffinity(0, processors[int(name[2:]) % int(number) :: int(number)])


def pytest_configure(config: pytest.Config) -> None:
    _take_own_processors()
    launch.install()
    for given in config.getoption("--case"):
        kind, _, module = given.partition("=")
        if not module:
            raise pytest.UsageError(f"--case {given}: expected KIND=MODULE")
        contracts.external[kind] = module


@pytest.fixture(autouse=True)
def _as_it_was() -> Iterator[None]:
    """No test hears of another's secrets, nor loses pytest's hooks or writes its logs to where another's went."""
    hooks = sys.excepthook, threading.excepthook, sys.unraisablehook
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    policy = os.sched_getscheduler(0)
    yield
    found = os.sched_getscheduler(0)
    if found != policy:
        os.sched_setscheduler(0, policy, os.sched_param(0))
    sys.excepthook, threading.excepthook, sys.unraisablehook = hooks
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()
    forget()
    assert found == policy, "the test changed the scheduling policy of its process: see clips.same_priority"
