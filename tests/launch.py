"""Starts `python -m streamd …` by forking a process that has imported it already.

To start the interpreter with everything that a daemon imports takes a second or two of a core, and the tests start some
hundreds. Only commands that begin with `[sys.executable, "-m", "streamd"]` are forked, with the streams, folder and
environment that `subprocess.Popen` was given; all others, and calls with other options, are executed as usual. So is
everything with STREAMD_TEST_EXEC=1.
"""

from __future__ import annotations

import array
import atexit
import contextlib
import gc
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from tests import beside

_PREFIXES = ("PYTHON", "LD_", "MALLOC", "OMP_", "OPENBLAS_", "MKL_", "STREAMD_TEST_EXEC")
"""Variables that act when a process begins."""

# ------------------------------------------------------------------------------------------------------- the server


def _take_on(connection: socket.socket) -> int | list[str]:
    """Forks for one request: in the parent, the child's pid; in the child, its arguments."""
    room = socket.CMSG_SPACE(3 * array.array("i").itemsize)
    head, ancillary, *_ = connection.recvmsg(4, room)
    data = b""
    while len(data) < int.from_bytes(head, "big"):
        data += connection.recv(1 << 20)
    request = json.loads(data)
    streams = array.array("i")
    streams.frombytes(ancillary[0][2])
    if (pid := os.fork()) != 0:
        for descriptor in streams:
            os.close(descriptor)
        return pid
    for target, descriptor in enumerate(streams):
        os.dup2(descriptor, target)
    os.closerange(3, 1024)
    os.environ.clear()
    os.environ.update(request["environment"])
    time.tzset()
    os.chdir(request["folder"])
    os.umask(request["umask"])
    if request["session"]:
        os.setsid()
    sys.path[0] = request["folder"]
    arguments: list[str] = request["arguments"]
    return arguments


def _serve() -> list[str]:
    """Takes requests on standard input, a Unix socket; returns in a child, with its arguments."""
    control = socket.socket(fileno=0)
    poll = select.poll()
    poll.register(control, select.POLLIN)
    children: dict[int, tuple[int, socket.socket]] = {}
    while True:
        for number, _ in poll.poll():
            if number in children:
                pid, connection = children.pop(number)
                poll.unregister(number)
                os.close(number)
                with contextlib.suppress(OSError):
                    connection.sendall(os.waitpid(pid, 0)[1].to_bytes(4, "big"))
                connection.close()
                continue
            message, ancillary, *_ = control.recvmsg(1, socket.CMSG_SPACE(4))
            if not message:
                os._exit(0)  # the tests are over
            connection = socket.socket(fileno=int.from_bytes(ancillary[0][2], sys.byteorder))
            taken = _take_on(connection)
            if isinstance(taken, list):
                for each in (control, connection, *(c for _, c in children.values())):
                    each.detach()  # closed already, and the numbers may be others' soon
                return taken
            connection.sendall(taken.to_bytes(4, "big"))
            descriptor = os.pidfd_open(taken)
            poll.register(descriptor, select.POLLIN)
            children[descriptor] = taken, connection


def _main() -> NoReturn:
    import importlib

    from streamd import cli

    if sys.argv[1:] == ["low"]:
        beside.lower_session()
    for name in ("streamd.runtime.daemon", "streamd.config.loader", *(f"streamd.cli.{c}" for c in cli.COMMANDS)):
        importlib.import_module(name)
    gc.collect()
    gc.freeze()
    arguments = _serve()
    for stream, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        buffering = 1 if name == "stderr" or (mode == "w" and os.isatty(stream)) else -1
        errors = "backslashreplace" if name == "stderr" else None
        setattr(sys, name, open(stream, mode, buffering=buffering, closefd=False, errors=errors))  # noqa: SIM115
        setattr(sys, f"__{name}__", getattr(sys, name))
    sys.argv = [str(cli.__file__).replace("cli/__init__", "__main__"), *arguments]
    sys.exit(cli.main())


# ------------------------------------------------------------------------------------------------- the tests' side


class Server:
    """The process that forks. Started at its first use, ended with this one."""

    def __init__(self) -> None:
        self._control: socket.socket | None = None
        self._lock = threading.Lock()

    def start(self, request: dict[str, Any], streams: list[int]) -> tuple[int, socket.socket]:
        """The pid of a new process, and the connection on which its status comes when it has ended."""
        mine, theirs = socket.socketpair()
        with self._lock, theirs:
            if self._control is None:
                self._control, end = socket.socketpair()
                with end:
                    command = [sys.executable, "-m", "tests.launch", *(["low"] if beside.low else [])]
                    _execute(
                        command, stdin=end.fileno(), stdout=subprocess.DEVNULL, cwd=_ROOT, env=_BEGIN,
                        start_new_session=True,
                    )  # fmt: skip
                atexit.register(self._control.close)
            socket.send_fds(self._control, [b"x"], [theirs.fileno()])
        data = json.dumps(request).encode()
        socket.send_fds(mine, [len(data).to_bytes(4, "big")], streams)
        mine.sendall(data)
        return int.from_bytes(mine.recv(4, socket.MSG_WAITALL), "big"), mine

    def end(self) -> None:
        """Ends the process; the next use starts another one."""
        with self._lock:
            if self._control is not None:
                self._control.close()
                self._control = None


_execute = subprocess.Popen
_ROOT = Path(__file__).resolve().parent.parent
_BEGIN = dict(os.environ)
_server = Server()
_PLAIN = {"stdin", "stdout", "stderr", "text", "encoding", "errors", "universal_newlines", "bufsize", "cwd", "env",
          "start_new_session"}  # fmt: skip


def _acting(environment: Mapping[str, str]) -> dict[str, str]:
    """Those of these variables that act when a process begins."""
    found = {name: value for name, value in environment.items() if name.startswith(_PREFIXES)}
    # OpenCV, once a test has imported it, puts a folder of its own before the others, which no streamd needs.
    folders = found.pop("LD_LIBRARY_PATH", "").split(":")
    return found | {"LD_LIBRARY_PATH": ":".join(folder for folder in folders if folder and "/cv2/" not in folder)}


def _can_fork(arguments: Any, options: dict[str, Any]) -> bool:
    if not isinstance(arguments, list) or arguments[:3] != [sys.executable, "-m", "streamd"] or options.keys() - _PLAIN:
        return False
    if not all(isinstance(a, str) and a.isprintable() for a in arguments):
        return False
    environment = options.get("env")
    environment = os.environ if environment is None else environment
    if not all(isinstance(v, str) for v in environment.values()) or "STREAMD_TEST_EXEC" in environment:
        return False
    return _acting(environment) == _acting(_BEGIN)


class Popen(subprocess.Popen):  # type: ignore[type-arg]
    """`subprocess.Popen`, which has streamd forked where it can."""

    def __init__(self, args: Any, *more: Any, **options: Any) -> None:
        self._connection: socket.socket | None = None
        self._forks = not more and _can_fork(args, options)
        super().__init__(args, *more, **options)

    def _execute_child(self, args: Any, *more: Any) -> None:
        if not self._forks:
            super()._execute_child(args, *more)  # type: ignore[misc]
            return
        names = _execute._execute_child.__code__.co_varnames[2:]  # type: ignore[attr-defined]
        given = dict(zip(names, more, strict=False))
        ours = [given["p2cread"], given["c2pwrite"], given["errwrite"]]
        environment = os.environ if given["env"] is None else given["env"]
        umask = os.umask(0)
        os.umask(umask)
        request = {
            "arguments": list(args[3:]), "environment": dict(environment),
            "folder": os.path.abspath(given["cwd"] or "."), "session": given["start_new_session"], "umask": umask,
        }  # fmt: skip
        self.pid, self._connection = _server.start(request, [i if own == -1 else own for i, own in enumerate(ours)])
        self._child_created = True
        ends = ("p2cread", "p2cwrite", "c2pread", "c2pwrite", "errread", "errwrite")
        self._close_pipe_fds(*(given[end] for end in ends))  # type: ignore[attr-defined]

    def _take(self, wait_s: float | None) -> int | None:
        """The return code, if the process has ended within that time."""
        connection = self._connection
        if self.returncode is None and connection is not None and select.select([connection], [], [], wait_s)[0]:
            status = connection.recv(4, socket.MSG_WAITALL)
            self.returncode = os.waitstatus_to_exitcode(int.from_bytes(status, "big")) if status else -signal.SIGKILL
            connection.close()
        return self.returncode

    def _internal_poll(self, *more: Any, **options: Any) -> int | None:
        if not self._forks:
            code: int | None = super()._internal_poll(*more, **options)  # type: ignore[misc]
            return code
        return self._take(0)

    def _wait(self, timeout: float | None) -> int:
        if not self._forks:
            code: int = super()._wait(timeout=timeout)  # type: ignore[misc]
            return code
        if self._take(timeout) is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0)
        return self.returncode


def renew() -> None:
    """What is started from now on has the priority that this process has now."""
    _server.end()


def install() -> None:
    """`subprocess` starts streamd this way from now on."""
    if not os.environ.get("STREAMD_TEST_EXEC"):
        subprocess.Popen = Popen  # type: ignore[misc]


if __name__ == "__main__":
    _main()
