"""`streamd check CONFIG`: reports every problem that can be found before the daemon runs."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

from streamd.analysis.rules.checks import check_rules
from streamd.analysis.tracking import open_tracker
from streamd.config import Config
from streamd.config.classifiers import ClassifierSettings
from streamd.config.loader import InvalidConfig, load_in_time, shared
from streamd.config.problems import dotted
from streamd.engine.auto import AutoSettings, choice
from streamd.engine.tensorrt import TensorRtSettings
from streamd.errors import ConfigError, StreamdError
from streamd.runtime.classify.crop import WAITING_FRAMES
from streamd.runtime.otlp import check_installed
from streamd.security.address import unencoded
from streamd.security.redact import redact
from streamd.settings import FieldPath
from streamd.settings.places import unwritable_folder
from streamd.settings.plugins import origin
from streamd.sinks import open_sink
from streamd.sinks.connection import ClientTlsSettings
from streamd.sinks.curve import CurveSettings
from streamd.sinks.zmq import ZmqSettings
from streamd.sources import open_source
from streamd.sources.av import AvStreamSettings
from streamd.telemetry.access import Tls
from streamd.telemetry.logs import configure

_TYPOGRAPHIC = frozenset("“”„«»‘’")


def add_parser(subparsers: Any) -> None:
    """Adds the command."""
    p = subparsers.add_parser(
        "check",
        help="validate a configuration and its model without connecting to anything",
        description="Reports every problem of a configuration as FILE:LINE: FIELD: what was expected. Opens the model, "
        "but no camera and no port. The exit code is 0 if it is valid.",
    )
    p.add_argument("config", metavar="CONFIG", help="YAML configuration file")
    p.add_argument("--no-model", action="store_true", help="do not open the model (if it is not on this machine)")
    p.add_argument(
        "--no-secrets",
        action="store_true",
        help="do not read secrets, keys or certificates (if you have no access to them)",
    )


@dataclass(frozen=True)
class Problem:
    """Something outside the file itself that is wrong."""

    path: FieldPath
    """Of the setting that it comes from."""
    error: StreamdError

    def told(self, file: str, line: Callable[[FieldPath], int | None]) -> str:
        """As one line, with the place in the file, without secrets."""
        return redact(f"{file}:{line(self.path) or 1}: {self.error}")


def problems(
    config: Config,
    *,
    model: bool = True,
    secrets: bool = True,
    in_file: Callable[[FieldPath], FieldPath] = lambda path: path,
) -> list[Problem]:
    """Problems outside the file itself: missing inputs, outputs that cannot be written, invalid keys, a model that
    cannot be opened.

    Args:
        config: valid.
        model: open the model.
        secrets: read keys and certificates.
        in_file: translates paths of `config` to those of the file.
    """
    found: list[Problem] = []

    def told(path: FieldPath, message: str) -> None:
        where = in_file(path)
        found.append(Problem(where, ConfigError(f"{dotted(where)}: {message}")))

    def attempt(path: FieldPath, call: Callable[[], Any]) -> None:
        try:
            call()
        except StreamdError as error:
            found.append(Problem(in_file(path), error))

    for i, stream in enumerate(config.streams):
        if isinstance(stream, AvStreamSettings):
            _look_at_url(stream, partial(told, ("streams", i, "url")))
    for i, stream in enumerate(config.streams):
        if origin(stream) is not None:
            attempt(("streams", i), partial(open_source, stream))
    for i, sink in enumerate(config.sinks):
        if origin(sink) is not None:
            attempt(("sinks", i), partial(open_sink, sink))
        try:
            looked = list(sink.look())
        except Exception:
            if origin(sink) is None:
                raise
            continue  # reported as a problem of the file
        for below, message in looked:
            told(("sinks", i, *below), message)
    if config.tracking is not None and origin(config.tracking) is not None:
        attempt(("tracking",), partial(open_tracker, config.tracking))
    if config.otlp is not None:
        attempt(("otlp",), check_installed)
    folders: list[tuple[FieldPath, str | None]] = [(("events", "state_dir"), config.events.state_dir)]
    folders.append((("media", "folder"), config.media.folder))
    if config.recorder.keep:
        folders.append((("recorder", "folder"), config.recorder.folder))
    for where, folder in folders:
        if folder is not None and (reason := unwritable_folder(Path(folder))) is not None:
            told(where, reason)
    if secrets:
        for i, sink in enumerate(config.sinks):
            where = ("sinks", i)
            if isinstance(sink, ZmqSettings) and sink.curve is not None:
                attempt((*where, "curve"), partial(_check_keys, dotted(in_file(where)), sink.curve))
            if isinstance(tls := getattr(sink, "tls", None), ClientTlsSettings):
                attempt((*where, "tls"), partial(tls.context, dotted(in_file((*where, "tls")))))
        if (tls := config.metrics.tls) is not None:
            attempt(("metrics", "tls"), partial(Tls, tls.certificate, tls.key))
    if model:
        _check_model(config, told, attempt)
    return found


def _look_at_url(stream: AvStreamSettings, told: Callable[[str], None]) -> None:
    path = Path(stream.url.removeprefix("file:"))
    misread = any(below == ("url",) for below, _ in stream.check())  # which is told already
    if not stream.live and not path.is_file() and not misread:
        told(f"{path} is not a file; {_instead_of(path.name)}")
    if character := unencoded(stream.url):
        told(
            f"there is a raw {character} in the password, which ends the host there; "
            f"write it as {quote(character, safe='')} (/ is %2F, ? is %3F, # is %23, % is %25)"
        )


def _instead_of(name: str) -> str:
    """What was expected where a file of that name was looked for."""
    if name.isdecimal():
        return f"a camera at this machine is /dev/video{name}"
    if _TYPOGRAPHIC.intersection(name):
        return "it holds typographic quotes, which YAML takes for a part of the value; write straight ones"
    return "expected a video file, /dev/videoN, or a URL such as rtsp://HOST/PATH"


def _check_keys(where: str, curve: CurveSettings) -> None:
    from streamd.sinks.curve import Clients, public_of

    public_of(curve.secret_key.get_secret_value(), f"{where}.curve.secret_key")
    Clients(curve.clients)


def _check_model(
    config: Config,
    told: Callable[[FieldPath, str], None],
    attempt: Callable[[FieldPath, Callable[[], Any]], None],
) -> None:
    from streamd.engine import open_backend
    from streamd.heads.detector import open_detector
    from streamd.heads.postprocess import class_numbers
    from streamd.runtime.classify.opening import open_classifier

    labels: tuple[str, ...] | None = None

    def open_model() -> None:
        nonlocal labels
        backend = open_backend(config.engine, config.model, batch=config.batch)
        try:
            labels = open_detector(backend.spec, config.model.head, config.model.detect).labels
        finally:
            backend.close()

    def check_classifier(classifier: ClassifierSettings) -> None:
        opened, _ = open_classifier(classifier, config.engine.for_device(config.engine.devices[0]))
        opened.close()
        if labels is not None:
            class_numbers(classifier.classes, labels, f"classifier {classifier.name}: classes")

    attempt(("model",), open_model)
    if labels is not None:
        for i, stream in enumerate(config.streams):
            for path, message in check_rules(stream.zones, stream.lines, labels):
                told(("streams", i, *path), message)
    for i, classifier in enumerate(config.classifiers):
        attempt(("classifiers", i), partial(check_classifier, classifier))


def notes(config: Config) -> list[str]:
    """What works in another way than one may expect, for people."""
    engine = config.engine
    found = []
    if isinstance(engine, AutoSettings):
        engine, reason = choice(config.model)
        found.append(f"engine: {engine.kind}, because {reason}")
    on_gpu = isinstance(engine, TensorRtSettings)
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
    configure("warning")
    try:
        loaded = load_in_time(args.config, secrets=not args.no_secrets, share=False)
    except InvalidConfig as error:
        print(error)
        if (rest := error.partial) is not None:
            found = problems(rest.config, model=False, secrets=not args.no_secrets, in_file=rest.in_file)
            for problem in found:
                if not rest.follows(problem.path):
                    print(problem.told(args.config, rest.line))
        return error.exit_code
    except ConfigError as error:
        print(redact(str(error)))
        return error.exit_code
    config = loaded.config
    for text in loaded.warnings:
        print(f"{args.config}: warning: {text}")
    found = problems(config, model=not args.no_model, secrets=not args.no_secrets)
    for problem in found:
        print(problem.told(args.config, loaded.line))
    if found:
        return found[0].error.exit_code
    for text in notes(config):
        print(f"{args.config}: note: {text}")
    print(f"{args.config}: valid: {_number(config.streams, 'stream')}, {_number(config.sinks, 'sink')}")
    if config.share is not None:
        print(f"share of {config.share.count}: {', '.join(s.id for s in shared(config).streams) or 'no streams'}")
    return 0
