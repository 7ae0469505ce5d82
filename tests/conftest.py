"""Where tests find real models, images and clips."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import hypothesis
import pytest
import structlog

from streamd.security.redact import forget
from tests import beside, launch
from tests.constants import changed, constants

ROOT = Path(__file__).resolve().parent.parent
DATA = Path(os.environ.get("STREAMD_TEST_DATA", ROOT.parent / "shared"))
collect_ignore = ["compat/plugins"]
"""Tests of another package, which `test_package.py` runs where that is installed."""


# A shell starts what it puts in the background with SIGINT ignored, and so would all our processes.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

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


def pytest_configure(config: pytest.Config) -> None:
    if (workerinput := getattr(config, "workerinput", None)) is not None:
        beside.take_place(workerinput)
    launch.install()


@pytest.hookimpl(optionalhook=True)  # there is none with -p no:xdist
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> object:
    from tests.distribution import Scheduling

    return Scheduling(config, log) if config.getvalue("dist") == "loadfile" else None


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        limit_s = beside.limit_s(item.nodeid)
        if limit_s is not None and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(limit_s))


def pytest_runtest_setup(item: pytest.Item) -> None:
    if beside.steps_back(item.nodeid):
        launch.renew()


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


@pytest.fixture(autouse=True, scope="module")
def _constants_as_they_were() -> Iterator[None]:
    """No file of tests changes a limit for those after it."""
    before = constants()
    yield
    assert not (found := changed(before)), f"changed for the tests after this file, in the same process: {found}"
