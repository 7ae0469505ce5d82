"""The builds of gpu_suite.py."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import gpu_suite
import pytest
from gpu_build import Wanted, clock_rates, effort_of

from tests.engine.onnx_models import qdq
from tests.engine.trt import trt_here


def test_a_plan_at_an_effort_has_a_name_of_its_own() -> None:
    own = Wanted.of("v5=m.onnx:int8:1,16,32")
    assert own == Wanted("v5", Path("m.onnx"), "int8", ("1", "16", "32"))
    assert own.at(None) == own
    assert own.at(0) == Wanted("v5-effort0", Path("m.onnx"), "int8", ("1", "16", "32"), 0)


def test_efforts() -> None:
    assert [effort_of(text) for text in ("own", "0", "5")] == [None, 0, 5]
    for text in ("6", "-1", "012", ""):
        with pytest.raises(ValueError, match=f"^{text}$"):
            effort_of(text)


def test_a_plan_is_built_at_each_effort(tmp_path: Path) -> None:
    trt = trt_here()
    wanted = f"m={qdq(tmp_path / 'm.onnx')}:int8:1,2,4"
    code = gpu_suite.main(["build", "--build", wanted, "--effort", "own", "1", "--jobs", "2", "--out", str(tmp_path)])
    assert code == 0
    found = json.loads((tmp_path / "build.json").read_text())
    assert {name: result["exit"] for name, result in found.items()} == {"m": 0, "m-effort1": 0}
    assert (tmp_path / "m.plan").is_file()
    assert (tmp_path / "m-effort1.plan").is_file()
    told = (tmp_path / "m-effort1.log").read_text()
    assert ("effort is ignored" in told) == trt.is_rtx
    assert (", effort 1, built in" in told) == trt.has_effort_levels
    assert "effort" not in (tmp_path / "m.log").read_text()


DRIVER = """
#include <string.h>
static int asked[128];
int cuDeviceGetAttribute(int *value, int attribute, int device) {
    if (device > 1) return 101;
    *value = 1000 * attribute + 100 * device + ++asked[attribute];
    return 0;
}
int cuGetProcAddress(const char *name, void **found, int version, unsigned long long flags) {
    *found = strcmp(name, "cuDeviceGetAttribute") ? 0 : (void *)cuDeviceGetAttribute;
    return *found ? 0 : 500;
}
"""
CALLS = """
import ctypes, sys
driver, value, found = ctypes.CDLL(sys.argv[1]), ctypes.c_int(), ctypes.c_void_p()
assert driver.cuGetProcAddress(b"cuNothing", ctypes.byref(found), 11080, ctypes.c_ulonglong(0)) == 500
assert driver.cuGetProcAddress(b"cuDeviceGetAttribute", ctypes.byref(found), 11080, ctypes.c_ulonglong(0)) == 0
other = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_int), ctypes.c_int, ctypes.c_int)(found.value)
for attribute, device in ((13, 0), (36, 0), (13, 1), (75, 0), (13, 2)):
    told = []
    for call in (driver.cuDeviceGetAttribute, other, other):
        value.value = 0
        told.append((call(ctypes.byref(value), attribute, device), value.value))
    print(told)
"""


def test_clock_rates_are_asked_for_once(tmp_path: Path) -> None:
    """With a driver that counts; the runtime finds its functions in both of these ways."""
    source, driver = tmp_path / "driver.c", tmp_path / "driver.so"
    source.write_text(DRIVER)
    subprocess.run(["cc", "-shared", "-fPIC", "-o", driver, source], check=True)
    done = subprocess.run(
        [sys.executable, "-c", CALLS, str(driver)], env=os.environ | {"LD_PRELOAD": str(clock_rates(tmp_path))},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.splitlines() == [
        str([(0, 13001)] * 3), str([(0, 36001)] * 3), str([(0, 13102)] * 3),
        str([(0, 75001), (0, 75002), (0, 75003)]), str([(101, 0)] * 3),
    ]  # fmt: skip
