"""Where a box lives on its node: one folder with its configuration, its socket, its log and its keeper's notes."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from streamd.errors import ConfigError
from streamd.events.place import default_state_dir, user_folder

LONGEST_SOCKET = 107
"""Bytes of a Unix socket's path; the kernel's limit."""


def fleet_folder(state_dir: str | None = None, environment: Mapping[str, str] = os.environ) -> Path:
    """The folder of this node's boxes: `fleet.state_dir`, or the default."""
    if state_dir is not None:
        return Path(state_dir)
    return default_state_dir("fleet", environment) or user_folder(environment) / "fleet"


@dataclass(frozen=True)
class BoxFolder:
    """The files of one box."""

    path: Path

    @property
    def config(self) -> Path:
        """FLEET.yaml as the coordinator gave it."""
        return self.path / "fleet.yaml"

    @property
    def socket(self) -> Path:
        """The daemon's control socket."""
        return self.path / "control"

    @property
    def log(self) -> Path:
        """What daemon and keeper print."""
        return self.path / "daemon.log"

    @property
    def lock(self) -> Path:
        """Held by the keeper as long as it lives."""
        return self.path / "keeper.lock"

    @property
    def stopped(self) -> Path:
        """There once the box was stopped on its node: nobody starts it again but a new fleet, or who undrains it."""
        return self.path / "stopped"

    @property
    def notes(self) -> Path:
        """What the keeper knows, see `keeper.Notes`."""
        return self.path / "keeper.json"

    @property
    def highest(self) -> Path:
        """The highest generation that the box knows of, as a decimal number."""
        return self.path / "generation"

    @property
    def state(self) -> Path:
        """State folder of the daemon: its event journal."""
        return self.path / "state"

    def make(self) -> None:
        """Creates the folder; nobody else may look into it.

        Raises:
            ConfigError: it cannot be created, or a socket in it would have too long a name.
        """
        if len(os.fsencode(self.socket)) > LONGEST_SOCKET:
            raise ConfigError(
                f"fleet.state_dir: {self.path.parent} is too long: the path of a socket has at most {LONGEST_SOCKET} "
                "bytes; choose a shorter folder"
            )
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.path.chmod(0o700)
        except OSError as error:
            raise ConfigError(f"fleet.state_dir: {self.path}: {error.strerror}; choose another folder") from error


def write_whole(path: Path, content: bytes) -> None:
    """Writes a file, readable by its owner only, so that whoever opens it sees all of it or what was there before."""
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise
