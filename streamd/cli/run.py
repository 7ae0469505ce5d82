"""`streamd run CONFIG`: the daemon."""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import os
import sys
from typing import TYPE_CHECKING, Any

import structlog

from streamd.config.loader import load
from streamd.recorder.recorder import ignore_request
from streamd.runtime.reload import Reread
from streamd.telemetry.logs import configure

if TYPE_CHECKING:
    from streamd.runtime.daemon import Daemon
    from streamd.workers.supervisor import WorkerSupervisor


def add_parser(subparsers: Any) -> None:
    """Adds the command."""
    p = subparsers.add_parser("run", help="watch the streams of a configuration until stopped")
    p.add_argument("config", metavar="CONFIG", help="YAML configuration file")
    p.add_argument("--for", dest="seconds", type=float, metavar="SECONDS", help="stop after so many seconds")


def run(args: argparse.Namespace) -> int:
    """Runs the daemon in the foreground until SIGTERM or SIGINT, which drain; a second one leaves at once.

    SIGHUP reads the configuration again; SIGUSR2 writes a bundle, see `streamd bundle`.
    """
    reread = Reread(args.config)
    with contextlib.suppress(ValueError, OSError):
        faulthandler.enable()  # the stacks of all threads on standard error at a fatal signal
    ignore_request()
    reread.install()  # now: loading a model may take minutes, and a reload asked for meanwhile is done after it
    loaded = load(args.config)
    logging = loaded.config.logging
    configure(logging.level, logging.format)
    for text in loaded.warnings:
        structlog.get_logger(__name__).warning("configuration", config=str(loaded.path), advice=text)
    daemon: Daemon | WorkerSupervisor
    if loaded.config.workers > 1:
        from streamd.workers.supervisor import WorkerSupervisor

        daemon = WorkerSupervisor(loaded.config, reread=reread)
    else:
        from streamd.runtime.daemon import Daemon

        daemon = Daemon(loaded.config, reread=reread)
    code = daemon.run(args.seconds)
    if daemon.left_running:
        # A thread sits in a read that cannot be cut: leave without waiting for it.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code
