"""NVIDIA's Multi-Process Service for the workers of one daemon: their kernels run concurrently instead of in turns.

One control daemon, our child process, listens in our own folder and starts servers as workers connect. It changes no
setting of the GPU. If a server dies, so does the work of its clients: the workers end and are started again, and the
control daemon starts another server. If the control daemon dies, it is started again with the next worker. By the
driver's own rule, a worker that cannot reach one runs without: a dead MPS only costs speed.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import structlog

from streamd.errors import BackendError

log = structlog.get_logger(__name__)

CONTROL = "nvidia-cuda-mps-control"
PIPES, LOGS = "CUDA_MPS_PIPE_DIRECTORY", "CUDA_MPS_LOG_DIRECTORY"
VISIBLE = "CUDA_VISIBLE_DEVICES"
START_S = 10.0
"""Longest time from its start until it responds."""
AGAIN_S = 2.0
"""The same while a daemon is running that has other things to do."""
WAIT_S = 30.0
"""After it could not be started again."""
_ASK_S = 5.0
_ADVICE = "it is part of the NVIDIA driver (not on Jetson); see docs/tuning.md, or omit engine.mps"


def visible_to_clients(visible: str | None) -> dict[str, str]:
    """What clients of an MPS server need in their environment, where the server itself sees only some GPUs.

    The server numbers the GPUs that it sees from 0, and its clients choose among those: with the server's own list they
    would find none. Names (UUIDs) mean the same to both.

    Args:
        visible: CUDA_VISIBLE_DEVICES of the server.
    """
    listed = visible.split(",") if visible else []
    if not listed or not all(each.strip().isdecimal() for each in listed):
        return {}
    return {VISIBLE: ",".join(map(str, range(len(listed))))}


class Mps:
    """The control daemon. Its methods are called by one thread.

    Args:
        folder: the daemon's folder, private to its user; MPS writes to `mps` in it.
        wanted: if False, nothing is started. If `auto`, workers run without it where it does not start.
    """

    def __init__(self, folder: Path, *, wanted: bool | Literal["auto"]) -> None:
        self._wanted = wanted
        self._base = folder
        self._folder = folder / "mps"
        self._starts = 0
        self._not_before = 0.0
        self._process: subprocess.Popen[bytes] | None = None
        self.environment: Mapping[str, str] = {}
        """Environment variables for the workers."""

    def open(self) -> None:
        """Starts it if it is wanted and the environment names no other server.

        Raises:
            BackendError: it is not installed, or does not start, and is wanted without condition.
        """
        if not self._wanted:
            return
        if os.environ.get(PIPES):
            log.info("workers use an existing MPS server", pipes=os.environ[PIPES])
            return
        if self._wanted is True:
            self._start(START_S)
        else:
            self._try(START_S)

    def revive(self) -> None:
        """Starts it again if it has ended. Where that fails, the next workers run without it."""
        process = self._process
        if not self._starts or (process is not None and process.poll() is None) or time.monotonic() < self._not_before:
            return
        log.warning("MPS ended prematurely; starting it again", code=process.returncode if process else None)
        self._try(AGAIN_S)

    def _try(self, limit_s: float) -> None:
        try:
            self._start(limit_s)
        except (BackendError, OSError) as error:
            self.environment = {}
            self._not_before = time.monotonic() + WAIT_S
            log.error("MPS cannot be started; workers run without it", error=str(error), retry_in_s=WAIT_S)

    def _start(self, limit_s: float) -> None:
        self._starts += 1
        # A folder of its own: what the last one has left in there would be taken for a running server.
        self._folder = self._base / ("mps" if self._starts == 1 else f"mps{self._starts}")
        self._folder.mkdir(mode=0o700)
        environment = os.environ | {PIPES: str(self._folder), LOGS: str(self._folder)}
        try:
            # In its own session: at a Ctrl-C the workers drain first.
            self._process = subprocess.Popen(  # noqa: S603 - NVIDIA's program and our own words
                [CONTROL, "-f"], env=environment, start_new_session=True,
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )  # fmt: skip
        except OSError as error:
            raise BackendError(f"engine.mps: {CONTROL} cannot be started: {error.strerror}; {_ADVICE}") from error
        self.environment = {PIPES: str(self._folder), LOGS: str(self._folder)} | visible_to_clients(
            environment.get(VISIBLE)
        )
        deadline = time.monotonic() + limit_s
        while not self._ask("get_server_list"):
            code = self._process.poll()
            if code is not None or time.monotonic() > deadline:
                how = f"ended with code {code}" if code is not None else f"did not respond within {limit_s:g} s"
                said = self._said()
                self.kill()
                raise BackendError(f"engine.mps: {CONTROL} {how}{said}; {_ADVICE}")
            time.sleep(0.05)
        log.info("MPS started", pid=self._process.pid)

    def _ask(self, command: str) -> bool:
        """Whether it responds."""
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            done = subprocess.run(  # noqa: S603
                [CONTROL], env=os.environ | self.environment, input=f"{command}\n", text=True, check=False,
                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=_ASK_S,
            )  # fmt: skip
            return done.returncode == 0
        return False

    def _said(self) -> str:
        """The last line of its log."""
        with contextlib.suppress(OSError):
            lines = (self._folder / "control.log").read_text(errors="replace").strip().splitlines()
            return f" ({lines[-1][-200:]})" if lines else ""
        return ""

    def close(self, timeout: float) -> None:
        """Stops it and its servers, after the workers have ended. Idempotent."""
        if self._process is None:
            return
        if self._process.poll() is not None:
            log.warning("MPS ended prematurely", code=self._process.returncode)
        elif self._ask("quit"):
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout)
        self.kill()

    def kill(self) -> None:
        """Kills it. Any thread."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
