"""Runs targets, each in its own process, so that a crash or hang costs only that process."""

from __future__ import annotations

import contextlib
import faulthandler
import hashlib
import importlib
import json
import os
import select
import struct
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fuzzing import addresses, files, logs, matrices, messages, models, peers, video, wires
from fuzzing.mutate import Mutator
from fuzzing.target import Target

_MODULES = (addresses, files, models, messages, logs, matrices, video, wires, peers)
TARGETS: dict[str, type[Target]] = {t.name: t for module in _MODULES for t in module.TARGETS}
SEEDS = Path(__file__).resolve().parents[2] / "tests" / "fuzz" / "seeds"
"""Inputs of earlier findings, one folder per target. They are tried first, and mutated like the others."""
_START_S = 60.0
_TOO_MANY = 25
"""Number of findings after which a target is stopped; further ones would be similar."""


@dataclass
class Finding:
    """An input that caused a failure."""

    target: str
    number: int
    kind: str
    """exception, hang or crash."""
    text: str
    data: bytes

    @property
    def name(self) -> str:
        """Name for its file; equal inputs have equal names."""
        return hashlib.sha256(self.data).hexdigest()[:12]


@dataclass
class Result:
    """Result of a target's inputs."""

    target: str
    inputs: int = 0
    accepted: int = 0
    refused: int = 0
    seconds: float = 0.0
    slowest_s: float = 0.0
    peak_mb: float = 0.0
    """Peak memory of its process."""
    findings: list[Finding] = field(default_factory=list)


def kept(target: str) -> list[bytes]:
    """The inputs in the target's folder of seeds."""
    return [path.read_bytes() for path in sorted((SEEDS / target).glob("*")) if path.is_file()]


def find(name: str) -> type[Target]:
    """One of `TARGETS`, or the class that `MODULE:CLASS` names."""
    module, _, attribute = name.partition(":")
    if not attribute:
        return TARGETS[name]
    found: type[Target] = getattr(importlib.import_module(module), attribute)
    return found


def serve(name: str) -> None:
    """The child process: reads inputs with their lengths from standard input, answers each with a line of JSON."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what a library prints is no answer
    faulthandler.enable()
    from streamd.errors import StreamdError
    from streamd.telemetry.logs import configure

    configure("error", "json")
    with tempfile.TemporaryDirectory() as folder:
        target = find(name)(Path(folder))
        target.open()
        print("{}", file=answers)
        while len(head := sys.stdin.buffer.read(4)) == 4:
            data = sys.stdin.buffer.read(struct.unpack(">I", head)[0])
            answer: dict[str, Any] = {"outcome": "accepted"}
            try:
                target.run(data)
            except StreamdError as error:
                answer = _refusal(error)
            except BaseException:  # noqa: BLE001 - that is what is looked for
                answer = {"outcome": "exception", "text": traceback.format_exc()[-3000:]}
            answer["peak_mb"] = _peak_mb()
            print(json.dumps(answer), file=answers)
        target.close()


def _peak_mb() -> float:
    # Not getrusage: it includes the parent's memory before exec.
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def _refusal(error: Exception) -> dict[str, Any]:
    try:
        str(error).encode()
    except UnicodeEncodeError:
        return {"outcome": "exception", "text": f"its message cannot be printed: {error!a}"}
    return {"outcome": "refused", "text": str(error)[:200]}


class _Child:
    """The parent's side of a child process."""

    def __init__(self, name: str) -> None:
        tool = Path(__file__).resolve().parents[1] / "fuzz.py"
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the child
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        self._process = subprocess.Popen(
            [sys.executable, str(tool), "--serve", name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env=environment,
        )
        self._answer(_START_S)

    def run(self, data: bytes, limit_s: float) -> dict[str, Any]:
        """The child's answer; its outcome is hang or crash if there was none."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(struct.pack(">I", len(data)) + data)
            self._process.stdin.flush()
        return self._answer(limit_s)

    def _answer(self, limit_s: float) -> dict[str, Any]:
        out = self._process.stdout
        assert out is not None
        ready, _, _ = select.select([out], [], [], limit_s)
        line = out.readline() if ready else b""
        if line:
            found: dict[str, Any] = json.loads(line)
            return found
        if not ready:
            # Prints the stacks of all threads before it is killed.
            self._process.send_signal(6)
            try:
                self._process.wait(5)
            except subprocess.TimeoutExpired:
                self._process.kill()
        code = self._process.wait()
        return {"outcome": "hang" if not ready else "crash", "text": f"exit code {code}\n{self._tail()}"}

    def _tail(self) -> str:
        self._log.seek(max(0, self._log.seek(0, os.SEEK_END) - 4000))
        return self._log.read().decode(errors="replace")

    def close(self) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._log.close()


def fuzz(
    name: str,
    count: int,
    *,
    seed: int,
    only: Sequence[int] | None = None,
    told: Callable[[Finding], None] = lambda _: None,
) -> Result:
    """Runs `count` inputs on a target, or only those whose numbers are in `only`.

    Args:
        name: of the target.
        count: inputs; all seeds are among them, however few.
        seed: the same inputs for the same seed.
        only: numbers of inputs.
        told: called with each finding at once.
    """
    kind = find(name)
    with tempfile.TemporaryDirectory() as folder:
        seeds = [*kept(name), *kind.seeds(Path(folder))]
    mutator = Mutator(seeds, kind.tokens, text=kind.text, seed=f"{seed}/{name}")
    result = Result(name)
    begin = time.monotonic()
    child = _Child(name)
    try:
        for number in only if only is not None else range(max(count, len(seeds))):
            data = mutator.make(number)
            started = time.monotonic()
            answer = child.run(data, kind.limit_s)
            took = time.monotonic() - started
            result.inputs += 1
            result.slowest_s = max(result.slowest_s, took)
            result.peak_mb = max(result.peak_mb, answer.get("peak_mb", 0.0))
            outcome = answer["outcome"]
            if outcome == "accepted":
                result.accepted += 1
            elif outcome == "refused":
                result.refused += 1
                if only is not None:
                    print(f"{name} {number}: refused: {answer['text']}", file=sys.stderr)
            else:
                finding = Finding(name, number, outcome, answer["text"], data)
                result.findings.append(finding)
                told(finding)
                if outcome in ("hang", "crash"):
                    child.close()
                    child = _Child(name)
                if len(result.findings) >= _TOO_MANY:
                    break
    finally:
        child.close()
    result.seconds = time.monotonic() - begin
    return result
