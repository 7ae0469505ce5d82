"""`streamd check CONFIG`: reports every problem that can be found before the daemon runs."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

from streamd.config import Config
from streamd.config.loader import load
from streamd.errors import ConfigError, StreamdError
from streamd.security.address import unencoded
from streamd.security.redact import redact
from streamd.sinks.curve import CurveSettings
from streamd.sinks.zmq import ZmqSettings
from streamd.sources.av import AvStreamSettings
from streamd.telemetry.access import Tls


def add_parser(subparsers: Any) -> None:
    """Adds the command."""
    p = subparsers.add_parser("check", help="validate a configuration and its model without connecting to anything")
    p.add_argument("config", metavar="CONFIG", help="YAML configuration file")
    p.add_argument("--no-model", action="store_true", help="do not open the model (if it is not on this machine)")
    p.add_argument(
        "--no-secrets",
        action="store_true",
        help="do not read secrets, keys or certificates (if you have no access to them)",
    )


def problems(config: Config, *, model: bool = True, secrets: bool = True) -> list[StreamdError]:
    """Problems outside the file itself: missing inputs, invalid keys, a model that cannot be opened."""
    found: list[StreamdError] = []
    for i, stream in enumerate(config.streams):
        if isinstance(stream, AvStreamSettings) and not stream.live:
            path = Path(stream.url.removeprefix("file:"))
            if not path.is_file():
                found.append(ConfigError(f"streams[{i}].url: {path} is not a file"))
        if isinstance(stream, AvStreamSettings) and (character := unencoded(stream.url)):
            found.append(
                ConfigError(
                    f"streams[{i}].url: there is a raw {character} in the password, which ends the host there; "
                    f"write it as {quote(character, safe='')} (/ is %2F, ? is %3F, # is %23, % is %25)"
                )
            )
    if secrets:
        for i, sink in enumerate(config.sinks):
            if isinstance(sink, ZmqSettings) and sink.curve is not None:
                _try(found, partial(_check_keys, f"sinks[{i}]", sink.curve))
        if (tls := config.metrics.tls) is not None:
            _try(found, partial(Tls, tls.certificate, tls.key))
    if model:
        _try(found, lambda: _check_model(config))
    return found


def _check_keys(where: str, curve: CurveSettings) -> None:
    from streamd.sinks.curve import Clients, public_of

    public_of(curve.secret_key.get_secret_value(), f"{where}.curve.secret_key")
    Clients(curve.clients)


def _try(found: list[StreamdError], call: Callable[[], Any]) -> None:
    try:
        call()
    except StreamdError as error:
        found.append(error)


def _check_model(config: Config) -> None:
    from streamd.engine import open_backend
    from streamd.heads.detector import open_detector

    backend = open_backend(config.engine, config.model, batch=config.batch)
    try:
        open_detector(backend.spec, config.model.head, config.model.detect)
    finally:
        backend.close()


def _number(things: Sequence[object], noun: str) -> str:
    return f"{len(things)} {noun}{'s' * (len(things) != 1)}"


def run(args: argparse.Namespace) -> int:
    """Prints every problem, one per line. Returns the exit code of the first, or 0 if there is none."""
    loaded = load(args.config, secrets=not args.no_secrets)
    config = loaded.config
    for text in loaded.warnings:
        print(f"{args.config}: warning: {text}", file=sys.stderr)
    found = problems(config, model=not args.no_model, secrets=not args.no_secrets)
    for error in found:
        print(redact(f"{args.config}: {error}"))
    if found:
        return found[0].exit_code
    print(f"{args.config}: valid: {_number(config.streams, 'stream')}, {_number(config.sinks, 'sink')}")
    if config.share is not None:
        print(f"share of {config.share.count}: {', '.join(s.id for s in config.streams) or 'no streams'}")
    return 0
