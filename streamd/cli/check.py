"""`streamd check CONFIG`: reports every problem that can be found before the daemon runs."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

from streamd.analysis.rules.checks import check_rules
from streamd.config import Config
from streamd.config.loader import InvalidConfig, load_in_time, shared
from streamd.config.problems import dotted
from streamd.engine.auto import AutoSettings, tensorrt_unavailable
from streamd.engine.tensorrt import TensorRtSettings
from streamd.errors import ConfigError, StreamdError
from streamd.runtime.classify.crop import WAITING_FRAMES
from streamd.security.address import unencoded
from streamd.security.redact import redact
from streamd.settings import FieldPath
from streamd.settings.places import unwritable_folder
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


def problems(
    config: Config,
    *,
    model: bool = True,
    secrets: bool = True,
    in_file: Callable[[FieldPath], FieldPath] = lambda path: path,
) -> list[StreamdError]:
    """Problems outside the file itself: missing inputs, outputs that cannot be written, invalid keys, a model that
    cannot be opened.

    Args:
        config: valid.
        model: open the model.
        secrets: read keys and certificates.
        in_file: translates paths of `config` to those of the file.
    """
    found: list[StreamdError] = []

    def told(path: FieldPath, message: str) -> None:
        found.append(ConfigError(f"{dotted(in_file(path))}: {message}"))

    for i, stream in enumerate(config.streams):
        if isinstance(stream, AvStreamSettings) and not stream.live:
            path = Path(stream.url.removeprefix("file:"))
            if not path.is_file():
                told(("streams", i, "url"), f"{path} is not a file")
        if isinstance(stream, AvStreamSettings) and (character := unencoded(stream.url)):
            told(
                ("streams", i, "url"),
                f"there is a raw {character} in the password, which ends the host there; "
                f"write it as {quote(character, safe='')} (/ is %2F, ? is %3F, # is %23, % is %25)",
            )
    for i, sink in enumerate(config.sinks):
        for below, message in sink.look():
            told(("sinks", i, *below), message)
    folders: list[tuple[FieldPath, str | None]] = [(("events", "state_dir"), config.events.state_dir)]
    if config.recorder.keep:
        folders.append((("recorder", "folder"), config.recorder.folder))
    for where, folder in folders:
        if folder is not None and (reason := unwritable_folder(Path(folder))) is not None:
            told(where, reason)
    if secrets:
        for i, sink in enumerate(config.sinks):
            if isinstance(sink, ZmqSettings) and sink.curve is not None:
                _try(found, partial(_check_keys, dotted(in_file(("sinks", i))), sink.curve))
        if (tls := config.metrics.tls) is not None:
            _try(found, partial(Tls, tls.certificate, tls.key))
    if model:
        _try(found, lambda: _check_model(config, told))
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


def _check_model(config: Config, told: Callable[[FieldPath, str], None]) -> None:
    from streamd.engine import open_backend
    from streamd.heads.detector import open_detector
    from streamd.heads.postprocess import class_numbers
    from streamd.runtime.classify.opening import open_classifier

    backend = open_backend(config.engine, config.model, batch=config.batch)
    try:
        labels = open_detector(backend.spec, config.model.head, config.model.detect).labels
    finally:
        backend.close()
    for i, stream in enumerate(config.streams):
        for path, message in check_rules(stream.zones, stream.lines, labels):
            told(("streams", i, *path), message)
    for classifier in config.classifiers:
        opened, _ = open_classifier(classifier, config.engine.for_device(config.engine.devices[0]))
        opened.close()
        class_numbers(classifier.classes, labels, f"classifier {classifier.name}: classes")


def notes(config: Config) -> list[str]:
    """What works in another way than one may expect, for people."""
    engine = config.engine
    on_gpu = isinstance(engine, TensorRtSettings) or (
        isinstance(engine, AutoSettings) and tensorrt_unavailable() is None
    )
    found = []
    for classifier in config.classifiers if on_gpu else ():
        streams = [
            s.id
            for s in config.streams
            if isinstance(s, AvStreamSettings) and s.decode != "software" and s.isolation == "thread"
            and (classifier.streams is None or s.id in classifier.streams)
        ]  # fmt: skip
        if streams:
            listed = ", ".join(streams[:5]) + (f" and {len(streams) - 5} more" if len(streams) > 5 else "")
            found.append(
                f"classifier {classifier.name}: pictures of {listed} may be in GPU memory, where the GPU cuts out "
                f"crops, {WAITING_FRAMES} at a time; further ones are counted as surfaces. With decode: software, all "
                "are copied"
            )
    return found


def _number(things: Sequence[object], noun: str) -> str:
    return f"{len(things)} {noun}{'s' * (len(things) != 1)}"


def run(args: argparse.Namespace) -> int:
    """Prints every problem, one per line. Returns the exit code of the first, or 0 if there is none."""
    try:
        loaded = load_in_time(args.config, secrets=not args.no_secrets, share=False)
    except InvalidConfig as error:
        print(error)
        if (rest := error.partial) is not None:
            for more in problems(rest.config, model=False, secrets=not args.no_secrets, in_file=rest.in_file):
                print(redact(f"{args.config}: {more}"))
        return error.exit_code
    except ConfigError as error:
        print(redact(str(error)))
        return error.exit_code
    config = loaded.config
    for text in loaded.warnings:
        print(f"{args.config}: warning: {text}")
    found = problems(config, model=not args.no_model, secrets=not args.no_secrets)
    for problem in found:
        print(redact(f"{args.config}: {problem}"))
    if found:
        return found[0].exit_code
    for text in notes(config):
        print(f"{args.config}: note: {text}")
    print(f"{args.config}: valid: {_number(config.streams, 'stream')}, {_number(config.sinks, 'sink')}")
    if config.share is not None:
        print(f"share of {config.share.count}: {', '.join(s.id for s in shared(config).streams) or 'no streams'}")
    return 0
