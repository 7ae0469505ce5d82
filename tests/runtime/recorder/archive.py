"""Looks into bundles."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any


class Archive:
    """One bundle, read whole."""

    def __init__(self, path: Path) -> None:
        self.files: dict[str, bytes] = {}
        with tarfile.open(path) as archive:
            for member in archive:
                extracted = archive.extractfile(member)
                assert extracted is not None
                self.files[member.name.rpartition("/")[2]] = extracted.read()

    def json(self, name: str) -> Any:
        return json.loads(self.files[name])

    def rows(self, name: str) -> list[dict[str, Any]]:
        """The rows of a table, with names for streams."""
        table = self.json(name)
        rows = [dict(zip(table["columns"], row, strict=True)) for row in table["rows"]]
        return [{**row, "stream": table["streams"][row["stream"]]} for row in rows]

    def log(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.files["log.jsonl"].splitlines()]

    @property
    def summary(self) -> str:
        return self.files["summary.txt"].decode()


def found(folder: Path, reason: str = "*") -> list[Path]:
    """Bundles of a reason, the oldest first."""
    return sorted(folder.glob(f"*-{reason}-*.tar.gz"), key=lambda path: path.stat().st_mtime_ns)
