"""`python -m streamd.runtime.control CONFIG --socket PATH --box NAME --state-dir DIR`: the daemon of a box.

CONFIG has the streams of all boxes; it begins without any, and runs what its orders name.
"""

from __future__ import annotations

import argparse
import faulthandler
import hashlib
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path

from streamd.config import Config
from streamd.config.loader import load
from streamd.errors import ConfigError, StreamdError
from streamd.runtime.control.server import ControlServer
from streamd.runtime.control.station import Station, without_streams
from streamd.runtime.daemon import Daemon
from streamd.runtime.descriptors import raise_limit
from streamd.runtime.drain import leave
from streamd.runtime.recorder.recorder import ignore_request
from streamd.telemetry.logs import bind_everywhere, configure, drain


class Box:
    """One box's configuration and daemon.

    Args:
        args: the command line.

    Raises:
        StreamdError: see `Daemon`.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        self._args = args
        config, revision = self._load()
        configure(config.logging.level, config.logging.format)
        bind_everywhere(box=args.box)
        self.daemon = Daemon(without_streams(config), record_as=args.box)
        station = Station(self.daemon, config, revision)

        def reload() -> None:
            station.configure(*self._load())

        try:
            self._server = ControlServer(Path(args.socket), station.exchange, reload, self.daemon.stop)
        except ConfigError:
            self.daemon.stop()
            self.daemon.run(handle_signals=False)
            raise

    def _load(self) -> tuple[Config, str]:
        args = self._args
        file = Path(args.config)
        revision = hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else ""
        loaded = load(file, share=False, base=Path(args.base) if args.base else None)
        config = loaded.config
        if config.workers not in (1, "auto"):
            raise ConfigError(f"{file}: workers: a box of a fleet is one process; expected 1, run more boxes instead")
        metrics, events = config.metrics, config.events
        if metrics.listen is not None:
            metrics = metrics.model_copy(update={"listen": args.listen})
        events = events.model_copy(update={"state_dir": str(Path(args.state_dir).absolute())})
        return config.model_copy(update={"metrics": metrics, "events": events}), revision

    def run(self) -> tuple[int, bool]:
        """Runs to the end. Returns the exit code, and whether a thread was left running."""
        try:
            code = self.daemon.run(self._args.seconds)
        finally:
            self._server.close()
        return code, self.daemon.left_running


def main(arguments: list[str] | None = None) -> int:
    """Runs one box until it is stopped."""
    parser = argparse.ArgumentParser(prog="python -m streamd.runtime.control", description="The daemon of a box.")
    parser.add_argument("config", metavar="CONFIG", help="configuration of the fleet")
    parser.add_argument("--socket", required=True, metavar="PATH", help="control socket")
    parser.add_argument("--box", required=True, metavar="NAME", help="name of the box")
    parser.add_argument("--state-dir", required=True, metavar="DIR", help="folder of the event journal")
    parser.add_argument("--listen", default="127.0.0.1:0", metavar="HOST:PORT", help="metrics (default %(default)s)")
    parser.add_argument("--base", metavar="DIR", help="what relative paths of CONFIG are relative to")
    parser.add_argument("--for", dest="seconds", type=float, metavar="SECONDS", help="stop after this many seconds")
    args = parser.parse_args(arguments)
    with suppress(ValueError, OSError):
        faulthandler.enable()
    raise_limit()
    ignore_request()
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # the box reloads by the socket
    os.environ.setdefault("STREAMD_BOX", args.box)
    try:
        code, left_running = Box(args).run()
    except StreamdError as error:
        print(error, file=sys.stderr)
        code, left_running = error.exit_code, False
    drain()
    return leave(code, left_running=left_running)


if __name__ == "__main__":
    sys.exit(main())
