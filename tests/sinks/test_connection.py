"""Files and addresses of sinks with a connection to a server."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from streamd.errors import SinkError
from streamd.sinks.connection import ADDRESS_PATTERN, ClientTlsSettings


@pytest.mark.parametrize("field", ["ca", "certificate", "key"])
def test_a_file_that_is_none_is_named_and_not_waited_for(tmp_path: Path, field: str) -> None:
    pipe, missing, open_to_all = tmp_path / "pipe", tmp_path / "none.pem", tmp_path / "open.pem"
    os.mkfifo(pipe)
    open_to_all.touch()
    open_to_all.chmod(0o666)
    for path, message in (
        (pipe, f"some sink: {pipe} is no file; expected a PEM file"),
        (missing, f"some sink: {missing} cannot be read: No such file or directory; expected a PEM file"),
        (open_to_all, f"some sink: {open_to_all}: every user may change it"),
    ):
        with pytest.raises(SinkError, match=re.escape(message)):
            ClientTlsSettings(**{field: str(path)}).context("some sink")


@pytest.mark.parametrize(
    ("address", "good"),
    [("h", True), ("h:1883", True), ("[::1]:65535", True), ("h:65536", False), ("h:", False), ("h:１８", False)],
)
def test_addresses(address: str, good: bool) -> None:
    assert bool(re.search(ADDRESS_PATTERN, address)) == good
