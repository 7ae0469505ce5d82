"""The latest log lines of this process, for the page."""

from __future__ import annotations

import itertools
import json
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

MAX_LINES = 1000
MAX_BYTES = 512 << 10
MAX_LINE_BYTES = 8 << 10
"""Of a longer line, as one with a traceback, only the longest text's end is kept."""
LATELY, LATELY_S = 100, 5.0

Line = tuple[int, str]
"""(serial number, event as a JSON object). Numbers increase, but may have gaps."""


class Tail:
    """Keeps the newest lines within `MAX_LINES` and `MAX_BYTES`. Any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lines: deque[tuple[Line, float]] = deque()
        """With the monotonic time at which each was added."""
        self._bytes = 0
        self._newest = 0
        self._others: dict[int, int] = {}

    def add(self, event: Mapping[str, Any]) -> None:
        """Adds an event whose secrets have been removed."""
        self._add(_text(event))

    def _add(self, line: str) -> None:
        with self._lock:
            self._newest += 1
            self._lines.append(((self._newest, line), time.monotonic()))
            self._bytes += len(line)
            while len(self._lines) > MAX_LINES or self._bytes > MAX_BYTES:
                (_, old), _ = self._lines.popleft()
                self._bytes -= len(old)

    def pass_on(self, process: int, lines: Sequence[Line]) -> None:
        """Adds lines of another process, each once.

        Args:
            process: a number that no other process has or had. Called by one thread.
            lines: what the process's `lately` returned.
        """
        for number, line in lines:
            if number > self._others.get(process, 0):
                self._others[process] = number
                self._add(line)

    def lately(self) -> list[Line]:
        """The lines of the last seconds, not more than `LATELY`."""
        begin = time.monotonic() - LATELY_S
        with self._lock:
            newest = itertools.takewhile(lambda each: each[1] >= begin, reversed(self._lines))
            return [line for line, _ in itertools.islice(newest, LATELY)][::-1]

    def after(self, number: int, limit: int = MAX_LINES) -> list[Line]:
        """The newest `limit` lines with numbers above `number`, oldest first."""
        with self._lock:
            newer = itertools.takewhile(lambda each: each[0][0] > number, reversed(self._lines))
            return [line for line, _ in itertools.islice(newer, limit)][::-1]


def _text(event: Mapping[str, Any]) -> str:
    text = json.dumps(event, default=str)
    if len(text) <= MAX_LINE_BYTES:
        return text
    texts = {key: str(value) for key, value in event.items() if not isinstance(value, (int, float, bool))}
    longest = max(texts, key=lambda key: len(texts[key]))
    whole = texts[longest]
    for share in (2, 8):  # escapes may take six characters for one
        texts[longest] = f"… {whole[-MAX_LINE_BYTES // share :]}"
        if len(text := json.dumps({**event, **texts})) <= MAX_LINE_BYTES:
            return text
    # Several long values: the event's name is what is left of it.
    return json.dumps({"event": str(event.get("event"))[:1000], "cut": True})
