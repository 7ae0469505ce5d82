"""`streamd keygen NAME`: generates a CURVE key pair, for a daemon or for one of its subscribers."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from streamd.errors import ConfigError


def add_parser(subparsers: Any) -> None:
    """Adds the command."""
    p = subparsers.add_parser(
        "keygen",
        help="generate a key pair for an encrypted zmq sink, or for a subscriber of one",
        description="Generates a CURVE key pair, for the daemon or for one of its subscribers. docs/security.md shows "
        "where each file belongs.",
    )
    p.add_argument("name", metavar="NAME", help="writes NAME.key (secret, mode 0600) and NAME.pub")
    p.add_argument("--force", action="store_true", help="overwrite existing files")


def _write(path: Path, text: str, mode: int) -> None:
    """Writes the file atomically; it is never, even briefly, readable by more users than `mode` allows."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        with open(handle, "w", encoding="ascii") as file:
            os.fchmod(handle, mode)
            file.write(f"{text}\n")
        temporary.replace(path)
    except OSError as error:
        raise ConfigError(f"keygen: {path} cannot be written: {error.strerror}") from error
    finally:
        temporary.unlink(missing_ok=True)


def run(args: argparse.Namespace) -> int:
    """Writes both files and prints the public key; says on standard error where the keys are."""
    from streamd.sinks.curve import new_pair

    if os.path.basename(args.name) in ("", ".", ".."):
        raise ConfigError(f"keygen: {args.name!r} is no name of a file; expected one such as yard or keys/yard")
    secret_file, public_file = Path(f"{args.name}.key"), Path(f"{args.name}.pub")
    for file in (secret_file, public_file):
        if os.path.lexists(file) and not args.force:
            raise ConfigError(f"keygen: {file} already exists; choose another name, or give --force to overwrite it")
    public, secret = new_pair()
    _write(secret_file, secret, 0o600)
    _write(public_file, f"{public} {secret_file.stem}", 0o644)
    print(f"secret key: {secret_file} (keep it private); public key: {public_file}", file=sys.stderr)
    print(public)
    return 0
