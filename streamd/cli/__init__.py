"""The command line: `streamd COMMAND …`.

Exit codes: 0 done; 1 unexpected failure; 2 wrong configuration or arguments; 3 wrong model; 4 every stream failed;
5 the inference backend failed; 6 a sink or port could not be opened; 7 the accuracy gate refused; 8 what was asked does
not run or answer; 130 and 143 when a second SIGINT or SIGTERM cut the drain short.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import importlib
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from streamd import __version__
from streamd.cli.output import Output, outputs
from streamd.errors import ConfigError, StreamdError
from streamd.security.redact import redact
from streamd.security.text import is_encodable, plain

COMMANDS = (
    "run", "demo", "check", "detect", "count", "inspect", "quantize", "build", "evaluate", "watch", "events", "bundle",
    "keygen", "kinds", "schema", "fleet",
)  # fmt: skip
"""Each is a module in this package with `add_parser(subparsers)` and `run(args) -> int`."""


_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO})
"""Why a write fails."""


def parser(command: str | None = None) -> argparse.ArgumentParser:
    """The command line: of all commands, or of the given one alone, which saves the time to import the others.

    Command modules are imported here; third-party libraries only when a command runs.
    """
    top = argparse.ArgumentParser(
        prog="streamd",
        description="Streaming video analytics: cameras and files in; detections, tracks, events and metrics out.",
        epilog="Try `streamd demo`. `streamd COMMAND --help` describes a command. Exit codes: 0 done, 1 unexpected "
        "failure, 2 configuration or arguments, 3 model, 4 every stream failed, 5 inference backend, 6 sink or port, "
        "7 accuracy gate, 8 no daemon or fleet answers.",
    )
    top.add_argument("--version", action="version", version=f"streamd {__version__}")
    subparsers = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name in (command,) if command in COMMANDS else COMMANDS:
        importlib.import_module(f"streamd.cli.{name}").add_parser(subparsers)
    return top


_MEANT = {
    "run": "start serve daemon up",
    "detect": "predict track infer",
    "evaluate": "val validate test eval",
    "build": "export compile trtexec",
    "check": "lint verify",
    "quantize": "calibrate quantise",
    "inspect": "info show",
    "watch": "status top",
}
"""What other programs call a command."""


def _wrong_command(given: str) -> str:
    """What may have been meant by a command that does not exist."""
    import difflib

    if Path(given).suffix.lower() in (".yaml", ".yml"):
        return f"to run a configuration: streamd run {given}"
    meant = next((name for name, words in _MEANT.items() if given.lower() in words.split()), None)
    close = [meant] if meant else difflib.get_close_matches(given.lower(), COMMANDS, n=1)
    return f"did you mean {close[0]}?" if close else f"expected one of {', '.join(COMMANDS)}"


def _open_standard_streams() -> None:
    """Gives a process that was started without them standard input, output and error.

    Else the first files and sockets that it opens get their numbers, and what a library prints ends up in them.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)  # as they are otherwise: workers and decoder processes need them, too
    os.close(descriptor)
    sys.stdout = sys.stdout or open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = sys.stderr or open(2, "w", closefd=False)  # noqa: SIM115


def _check_arguments(args: argparse.Namespace) -> None:
    """Refuses arguments that are empty, as those of a variable that is not set, or not UTF-8: only images may have such
    names.

    Raises:
        ConfigError: naming the argument.
    """
    from streamd.sources.images import SUFFIXES

    for name, value in vars(args).items():
        for text in value if isinstance(value, list) else [value]:
            if isinstance(text, str) and not text.strip():
                raise ConfigError(
                    f"{name.replace('_', '-')}: is empty; expected a value (is a shell variable not set?)"
                )
            if isinstance(text, str) and not is_encodable(text) and Path(text).suffix.lower() not in SUFFIXES:
                raise ConfigError(f"{name}: {text!a} is not UTF-8 text; rename the file or folder")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; the entry point of `streamd`.

    Returns:
        The exit code: the command's own, also if the reader of its output has exited (head, a closed pager). Errors
        that streamd raises on purpose print one clear message on standard error, no traceback.
    """
    _open_standard_streams()
    with outputs() as output:
        code, ended = 0, None
        try:
            code = _command(arguments, output)
            sys.stdout.flush()
        except SystemExit as error:  # of argparse
            ended = error
            sys.stdout.flush()
        except BrokenPipeError:
            pass  # nobody wants the rest of what never ends
        except OSError as error:
            if output is None:  # somebody else's
                code = _not_written(error, code)
        if output is not None and output.error is not None and not isinstance(output.error, BrokenPipeError):
            return _not_written(output.error, code if ended is None else int(ended.code or 0))
        if ended is not None:
            raise ended
        return code


def _of_output(error: OSError) -> bool:
    """Whether an error of a stream of somebody else's is one of writing."""
    return isinstance(error, BrokenPipeError) or (error.filename is None and error.errno in _NO_ROOM)


def _not_written(error: OSError, code: int) -> int:
    print(f"streamd: output cannot be written: {error.strerror}", file=sys.stderr)
    return code or 1


def _endless(args: argparse.Namespace) -> bool:
    """Whether a command goes on until its end is asked for, or takes as long as its input: it ends with its reader."""
    if args.command == "fleet":
        return bool(args.action == "run")
    return args.command in ("demo", "detect", "watch") or getattr(args, "follow", False)


def _command(arguments: Sequence[str] | None, output: Output | None) -> int:
    """Runs a command.

    Raises:
        OSError: its output could not be written, and it does not go on without.
    """
    first = next(iter(sys.argv[1:] if arguments is None else arguments), None)
    if first == "run":
        # Before anything that takes time: the daemon has not read its configuration yet, and need not read it again.
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    if first is None:
        parser().print_help(sys.stderr)
        return ConfigError.exit_code
    if first[:1] != "-" and first not in COMMANDS:
        given = plain(redact(first))
        print(f"streamd: {given}: no such command; {_wrong_command(given)}", file=sys.stderr)
        return ConfigError.exit_code
    args = parser(first).parse_args(arguments)
    with contextlib.suppress(AttributeError, OSError):  # a stream of somebody else's
        sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]  # file names that are not UTF-8
    try:
        _check_arguments(args)
        if output is not None:
            output.strict = _endless(args)
        code: int = importlib.import_module(f"streamd.cli.{args.command}").run(args)
    except StreamdError as error:
        print(f"streamd: {redact(str(error))}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        if isinstance(error, OSError) and (error is output.error if output is not None else _of_output(error)):
            raise
        print(redact(traceback.format_exc()), end="", file=sys.stderr)
        from streamd.settings.plugins import REMEDY, culprit  # loads Pydantic

        if (package := culprit(error.__traceback__)) is not None:
            print(f"streamd: the package {package} raised this; {REMEDY}", file=sys.stderr)
        return 1
    return code
