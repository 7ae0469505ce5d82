"""Facts about the machine and the process that a bundle needs. Nothing here calls a vendor library or a device."""

from __future__ import annotations

import contextlib
import os
import platform
import resource
import socket
import sys
import threading
from collections import Counter
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from types import FrameType
from typing import Any

from streamd import __version__

PACKAGES = (
    "av", "numpy", "opencv-python-headless", "openvino", "pyzmq", "msgspec", "pydantic", "prometheus-client",
    "structlog", "tensorrt", "tensorrt-cu12", "tensorrt-cu13", "pycuda", "cuda-bindings",
)  # fmt: skip
MAX_FILES = 500
MAX_DEPTH = 50
_CGROUP = ("cpu.max", "cpu.stat", "memory.max", "memory.high", "memory.current", "memory.peak", "memory.events",
           "pids.max", "pids.current", "cpuset.cpus.effective")  # fmt: skip


def _text(path: str | Path, limit: int = 4096) -> str | None:
    with contextlib.suppress(OSError), open(path, encoding="utf-8", errors="replace") as file:
        return file.read(limit).strip()
    return None


def _texts(paths: Iterable[Path]) -> dict[str, str]:
    return {path.name: text for path in paths if (text := _text(path)) is not None}


def versions() -> dict[str, str]:
    """Versions of streamd, Python and the installed packages."""
    found = {"streamd": __version__, "python": sys.version.split()[0], "kernel": platform.release()}
    for name in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def _cpu() -> dict[str, Any]:
    lines = (_text("/proc/cpuinfo") or "").splitlines()
    models = [line.partition(":")[2].strip() for line in lines if "model name" in line]
    return {
        "model": models[0] if models else platform.machine(),
        "cores": os.cpu_count(),
        "usable": sorted(os.sched_getaffinity(0)),
        "load": list(os.getloadavg()),
    }


def _gpus() -> dict[str, Any]:
    folder = Path("/proc/driver/nvidia")
    return {
        "driver": (_text(folder / "version") or "").splitlines()[:1],
        "devices": [_text(path / "information") for path in sorted(folder.glob("gpus/*"))],
    }


def _cgroup() -> dict[str, str]:
    line = next((x for x in (_text("/proc/self/cgroup") or "").splitlines() if x.startswith("0::")), "0::/")
    folder = Path("/sys/fs/cgroup") / line[3:].lstrip("/")
    return {"path": line[3:], **_texts(folder / name for name in _CGROUP)}


def open_files() -> dict[str, Any]:
    """Open file descriptors: the number of each kind, and the targets of the first few hundred."""
    found: dict[int, str] = {}
    with contextlib.suppress(OSError):
        for name in os.listdir("/proc/self/fd"):
            with contextlib.suppress(OSError):
                found[int(name)] = os.readlink(f"/proc/self/fd/{name}")
    kinds = Counter(target.split(":", 1)[0] if ":[" in target else "file" for target in found.values())
    listed = {str(number): found[number] for number in sorted(found)[:MAX_FILES]}
    return {"count": len(found), "kinds": dict(kinds), "files": listed}


def environment() -> dict[str, Any]:
    """Everything but the stacks. Includes no environment variables but the service manager's: they may be secrets."""
    limits = {name: resource.getrlimit(getattr(resource, name)) for name in ("RLIMIT_NOFILE", "RLIMIT_AS")}
    service = {name: os.environ[name] for name in ("INVOCATION_ID", "WATCHDOG_USEC") if name in os.environ}
    return {
        "host": socket.gethostname(),
        "versions": versions(),
        "platform": platform.platform(),
        "cpu": _cpu(),
        "gpu": _gpus(),
        "memory": (_text("/proc/meminfo") or "").splitlines()[:6],
        "pressure": _texts(Path("/proc/pressure") / name for name in ("cpu", "memory", "io")),
        "cgroup": _cgroup(),
        "limits": limits,
        "service": service,
        "command": sys.argv,
        "open_files": open_files(),
    }


def threads() -> list[dict[str, Any]]:
    """Every Python thread: its state and CPU time as the kernel reports them, and its stack."""
    known = {t.ident: t for t in threading.enumerate()}
    found = []
    for ident, frame in sys._current_frames().items():
        thread = known.get(ident)
        native = thread.native_id if thread is not None else None
        found.append({"name": thread.name if thread else "?", "native_id": native, **_task(native),
                      "stack": _stack(frame)})  # fmt: skip
    return found


def _task(native: int | None) -> dict[str, Any]:
    text = _text(f"/proc/self/task/{native}/stat") if native is not None else None
    if not text:
        return {}
    fields = text.rpartition(")")[2].split()
    return {"state": fields[0], "cpu_s": (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")}


def _stack(frame: FrameType | None) -> list[str]:
    """Stack frames, innermost first. Names and line numbers only: values may be secrets."""
    lines: list[str] = []
    while frame is not None and len(lines) < MAX_DEPTH:
        lines.append(f"{frame.f_code.co_filename}:{frame.f_lineno} {frame.f_code.co_name}")
        frame = frame.f_back
    return lines


def process() -> dict[str, float]:
    """The current process: memory, open files, threads and CPU seconds used."""
    fields = (_text("/proc/self/statm") or "0 0").split()
    times = os.times()
    with contextlib.suppress(OSError):
        return {
            "rss_mb": int(fields[1]) * resource.getpagesize() / 1e6,
            "fds": len(os.listdir("/proc/self/fd")),
            "threads": len(os.listdir("/proc/self/task")),
            "cpu_s": times.user + times.system,
        }
    return {"cpu_s": times.user + times.system}
