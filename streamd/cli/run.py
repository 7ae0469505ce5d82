"""`streamd run CONFIG`: the daemon."""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import signal
from functools import partial
from typing import TYPE_CHECKING, Any

import structlog

from streamd.cli.console import duration
from streamd.config.loader import load_in_time
from streamd.runtime.descriptors import raise_limit
from streamd.runtime.drain import leave
from streamd.runtime.recorder.recorder import ignore_request
from streamd.runtime.reload import Reread
from streamd.telemetry.logs import configure, drain
from streamd.workers.auto import settle, settle_like

if TYPE_CHECKING:
    from streamd.runtime.daemon import Daemon
    from streamd.workers.supervisor import WorkerSupervisor


def add_parser(subparsers: Any) -> None:
    """Adds the command."""
    p = subparsers.add_parser(
        "run",
        help="run the daemon until it is stopped",
        description="Runs the daemon in the foreground. Ctrl-C or SIGTERM drains it: frames in flight are published "
        "first; a second one exits at once. SIGHUP reloads the configuration, SIGUSR2 writes a support bundle.",
    )
    p.add_argument("config", metavar="CONFIG", help="YAML configuration file")
    p.add_argument("--for", dest="seconds", type=duration, metavar="SECONDS", help="stop after this many seconds")


def run(args: argparse.Namespace) -> int:
    """Runs the daemon in the foreground until SIGTERM or SIGINT, which drain it; a second one exits at once.

    SIGHUP reloads the configuration; SIGUSR2 writes a bundle, see `streamd bundle`.
    """
    reread = Reread(args.config)
    with contextlib.suppress(ValueError, OSError):
        faulthandler.enable()  # prints the stacks of all threads on standard error at a fatal signal
    raise_limit()
    ignore_request()
    reread.install()  # early: loading a model may take minutes, and a reload requested meanwhile is performed after it
    loaded = load_in_time(args.config)
    logging = loaded.config.logging
    configure(logging.level, logging.format)
    for text in loaded.warnings:
        structlog.get_logger(__name__).warning("configuration", config=str(loaded.path), advice=text)
    config = settle(loaded.config)
    reread.settle = partial(settle_like, running=config)
    daemon: Daemon | WorkerSupervisor
    if config.workers != 1:
        from streamd.workers.supervisor import WorkerSupervisor

        daemon = WorkerSupervisor(config, reread=reread)
    else:
        from streamd.runtime.daemon import Daemon

        daemon = Daemon(config, reread=reread)
    code = daemon.run(args.seconds)
    ignore_signals()
    drain()
    return leave(code, left_running=daemon.left_running)


def ignore_signals() -> None:
    """Ignores what would ask for a drain, a reload or a bundle: the daemon is done and the exit code is decided.

    The interpreter gives handlers written in Python back to the system when it ends, and their default action is to
    kill the process: a signal that came late would turn a clean exit into a death.
    """
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
