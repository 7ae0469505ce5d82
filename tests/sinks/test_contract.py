"""The suite of `streamd.testing.sinks` on every built-in sink, and what cannot be opened.

`contract(folder)` in the kind's own test file returns its settings and a `Reader`.
"""

from __future__ import annotations

from typing import Any

import pytest

from streamd.errors import SinkError
from streamd.sinks import SINKS, open_sink
from streamd.sinks.jsonl import JsonlSettings
from streamd.sinks.zmq import ZmqSettings
from streamd.testing.sinks import SinkContract
from tests import contracts

globals().update(contracts.classes(SinkContract, SINKS, "tests.sinks", "contract"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (ZmqSettings(bind="tcp://256.0.0.1:5555"), "zmq sink: cannot bind tcp://256"),
        (ZmqSettings(bind="nonsense"), "expected tcp://HOST:PORT"),
        (ZmqSettings(connect="http://x"), "expected tcp://HOST:PORT"),
        (JsonlSettings(path="/nonexistent/folder/x.jsonl"), "cannot open /nonexistent/folder/x.jsonl"),
        (JsonlSettings(path="/"), "cannot open /"),
    ],
)
def test_what_cannot_be_opened_is_named(settings: Any, message: str) -> None:
    sink = open_sink(settings)
    with pytest.raises(SinkError, match=message):
        sink.open()
    sink.close()
