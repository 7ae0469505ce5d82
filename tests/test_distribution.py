"""More workers of pytest-xdist than processors: which files each takes, and at what priority."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests import beside
from tests.beside import APART, BESIDE, NICE, WAIT
from tests.conftest import ROOT

WAITING = next(name for name in WAIT if name.endswith("/"))
PATIENT = next(name for name in BESIDE if name.endswith("/"))
TEST = """
import json, os, time
from pathlib import Path

def test_it():
    group = Path("/proc/self/autogroup")
    seen = {
        "worker": os.environ["PYTEST_XDIST_WORKER"], "nice": os.nice(0), "processors": sorted(os.sched_getaffinity(0)),
        "session": int(group.read_text().split()[-1]) if group.exists() else None,
    }
    time.sleep(SECONDS)
    Path("FILE.json").write_text(json.dumps(seen))
"""
CONFTEST = """
import pytest
from tests import beside

def pytest_configure(config):
    if hasattr(config, "workerinput"):
        beside.take_place(config.workerinput)

def pytest_runtest_setup(item):
    beside.steps_back(item.nodeid)

@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    from tests.distribution import Scheduling
    return Scheduling(config, log)
"""
WITHIN = """
import os, sys
os.sched_setaffinity(0, range(os.cpu_count()))  # the process that starts this one may have one processor only
usable = sorted(os.sched_getaffinity(0))[:int(sys.argv[1])]
if len(usable) < int(sys.argv[1]):
    sys.exit("too few processors")
os.sched_setaffinity(0, usable)
os.execv(sys.executable, [sys.executable, *sys.argv[2:]])
"""
"""Executes Python with so many processors."""


def run(
    folder: Path, files: dict[str, float], workers: int, processors: int, test: str = TEST
) -> subprocess.CompletedProcess[str]:
    """Tests of files, which take so many seconds."""
    (folder / "pytest.ini").write_text("[pytest]\n")
    (folder / "conftest.py").write_text(CONFTEST)
    for file, seconds in files.items():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        name = Path(file).stem
        (folder / file).write_text(test.replace("FILE", name).replace("SECONDS", str(seconds)))
    command = [sys.executable, "-c", WITHIN, str(processors), "-m", "pytest", "-q", "-p", "xdist"]
    command += ["-p", "no:cacheprovider"]
    command += ["--import-mode=importlib", "-n", str(workers), "--dist", "loadfile", "--no-loadscope-reorder", *files]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    environment.pop("PYTEST_ADDOPTS", None)
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=100)
    if "too few processors" in done.stderr:
        pytest.skip(f"there are no {processors} processors")
    return done


def distribute(folder: Path, files: dict[str, float], workers: int, processors: int) -> dict[str, dict[str, Any]]:
    """What the test of each file saw."""
    done = run(folder, files, workers, processors)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(files)} passed" in done.stdout
    return {file: json.loads((folder / f"{Path(file).stem}.json").read_text()) for file in files}


def test_files_that_measure_have_a_processor_and_others_run_beside_them(tmp_path: Path) -> None:
    measure = [f"tests/flow/test_measures{i}.py" for i in range(2)]
    wait = [f"{WAITING}test_waits{i}.py" for i in range(4)]
    beside = [f"{PATIENT}test_beside{i}.py" for i in range(4)]
    seconds = dict.fromkeys(measure, 2.0) | dict.fromkeys(wait, 0.4) | dict.fromkeys(beside, 0.2)
    seen = distribute(tmp_path, seconds, workers=4, processors=1)
    base = os.nice(0)
    for file in measure:
        assert (seen[file]["worker"], seen[file]["nice"]) == ("gw0", base), file
        assert len(seen[file]["processors"]) == 1
    waiting = [seen[file] for file in wait if seen[file]["worker"] in ("gw1", "gw2")]
    assert len(waiting) >= 3
    assert {each["nice"] for each in waiting} == {base}
    assert len([file for file in beside if seen[file]["worker"] == "gw3"]) >= 3
    low = [seen[file] for file in beside]
    assert {each["nice"] for each in low} == {min(base + NICE, 19)}
    assert {each["session"] for each in low} <= {NICE, None}


def test_who_has_nothing_else_left_takes_the_others_with_their_priority(tmp_path: Path) -> None:
    beside = [f"{PATIENT}test_beside{i}.py" for i in range(8)]
    seen = distribute(tmp_path, {"tests/flow/test_measures.py": 0.1} | dict.fromkeys(beside, 0.4), 4, processors=1)
    base = os.nice(0)
    assert seen["tests/flow/test_measures.py"]["nice"] == base
    assert {seen[file]["worker"] for file in beside} == {"gw0", "gw3"}
    assert {seen[file]["nice"] for file in beside} == {min(base + NICE, 19)}
    assert {seen[file]["session"] for file in beside} <= {NICE, None}


def test_with_a_processor_for_each_worker_all_take_files_in_their_order(tmp_path: Path) -> None:
    files = [f"tests/flow/test_waits{i}.py" for i in range(4)]
    seen = distribute(tmp_path, dict.fromkeys(files, 0.3), workers=2, processors=2)
    assert {each["worker"] for each in seen.values()} == {"gw0", "gw1"}
    assert {each["nice"] for each in seen.values()} == {os.nice(0)}
    places = {tuple(each["processors"]) for each in seen.values()}
    assert len(places) == 2
    assert all(len(place) == 1 for place in places)


SEVERAL = """
import os, time
import pytest

@pytest.mark.parametrize("number", range(6))
def test_it(number):
    with open("log", "a") as log:
        print("FILE", number, os.environ["PYTEST_XDIST_WORKER"], file=log)
    time.sleep(SECONDS)
"""


def test_long_tests_of_a_file_are_distributed_one_by_one(tmp_path: Path) -> None:
    files = ["tests/flow/test_whole.py", f"{APART[0]}test_apart.py"]
    done = run(tmp_path, dict(zip(files, (0.1, 0.4), strict=True)), workers=2, processors=2, test=SEVERAL)
    assert "12 passed" in done.stdout, done.stdout
    log = [line.split() for line in (tmp_path / "log").read_text().splitlines()]
    assert sorted((file, number) for file, number, _ in log) == sorted(
        (Path(file).stem, str(number)) for file in files for number in range(6)
    )
    assert len({worker for file, _, worker in log if file == "test_whole"}) == 1
    assert len({worker for file, _, worker in log if file == "test_apart"}) == 2


DIES = """
import os
import pytest

@pytest.mark.parametrize("number", range(3))
def test_it(number):
    with open("log", "a") as log:
        print("FILE", number, file=log)
    if (number, "FILE") == (1, "test_dies"):
        os._exit(SECONDS)
"""


def test_a_test_that_ends_its_process_is_run_once_and_the_others_go_on(tmp_path: Path) -> None:
    files = ["tests/flow/test_dies.py", "tests/flow/test_measures.py", f"{PATIENT}test_beside.py"]
    files.append(f"{WAITING}test_waits.py")
    done = run(tmp_path, dict.fromkeys(files, 3), workers=4, processors=1, test=DIES)
    assert "1 failed, 11 passed" in done.stdout, done.stdout
    log = (tmp_path / "log").read_text().splitlines()
    assert sorted(log) == sorted(f"{Path(file).stem} {number}" for file in files for number in range(3))


def test_what_is_named_is_there_and_waits_or_runs_beside() -> None:
    files = [str(path.relative_to(ROOT)) for path in (ROOT / "tests").rglob("test_*.py")]
    names = [name.partition("::")[0] for name in WAIT + BESIDE + APART]
    assert [name for name in names if not any(file.startswith(name) for file in files)] == []
    assert [file for file in files if file.startswith(WAIT) and file.startswith(BESIDE)] == []
    for path in files:
        if path.startswith(APART):
            assert not re.search(r"fixture\(.*scope=", (ROOT / path).read_text()), f"{path}: its tests share a fixture"


def test_who_has_a_low_priority_has_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(beside, "_shared", True)
    assert beside.limit_s(f"{PATIENT}test_a.py::test_it") == 600
    assert beside.limit_s(f"{WAITING}test_a.py::test_it") is None
    monkeypatch.setattr(beside, "_shared", False)
    assert beside.limit_s(f"{PATIENT}test_a.py::test_it") is None
