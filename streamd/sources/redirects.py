"""Slows down what leads to itself: RTSP servers that redirect in a circle, playlists whose variants are playlists.

FFmpeg follows them without counting, some thousand times a second, until the time limit. It tells of each in its log,
before it asks, and on the thread that opens the stream: that thread can be made to wait there.
"""

from __future__ import annotations

import logging
import re
import threading
import time
from typing import Protocol

from streamd.errors import SourceError
from streamd.security.redact import redact

MAX_REDIRECTS = 8
"""As many as FFmpeg follows over HTTP."""
MAX_ASKED = 500
"""Playlists and segments: more than one with `av_errors.MAX_TRACKS` variants needs before there is a picture."""
PAUSE_S = 1.0
"""After so many, one a second; the time limit of opening ends it."""

_REDIRECTING = re.compile(r"Status \d+: Redirecting to (\S+)")
_OPENING = re.compile(r"Opening '")
_HUNG_UP = "Error reading HTTP response: "
_MISSED = re.compile(r"RTP: missed (\d+) packets")


class OpeningListener:
    """Reads FFmpeg's log while a stream is opened: redirections, other addresses, and RTP packets lost meanwhile.

    Enter it on the thread that opens. PyAV passes lines that nobody captures to Python's logging, whose filters run
    on that thread, without a lock.

    Args:
        network: False: nothing is hooked.
        limit_s: of opening, in seconds. FFmpeg gives up then, address by address.
    """

    def __init__(self, network: bool, limit_s: float) -> None:
        self._network = network
        self._limit_s = limit_s
        self._until = 0.0
        self._redirects = self._asked = self._lost = 0
        self.hung_up = False
        """A request that moves to another byte of a file got no answer, and FFmpeg has given up what it wanted there.

        It asks servers to close the connection behind an answer, and sends its next request through it all the same,
        unless the answer says "Connection: close", which it should, but need not (RFC 9112, 9.6)."""
        self._target = ""
        """Where the last redirection led to."""
        if network:
            _hook()

    def __enter__(self) -> OpeningListener:
        if self._network:
            self._until = time.monotonic() + self._limit_s
            _thread.listener = self
        return self

    def __exit__(self, *_: object) -> None:
        if self._network:
            _thread.listener = None

    def line(self, text: str) -> None:
        """Takes a line; waits if it is about one address too many."""
        if _OPENING.match(text) is not None:
            self._asked += 1
        elif text.startswith(_HUNG_UP):
            self.hung_up |= not self._asked  # what a playlist names is asked for again by FFmpeg
        elif (redirected := _REDIRECTING.match(text)) is not None:
            self._redirects += 1
            self._target = redirected[1]
        elif (missed := _MISSED.match(text)) is not None:
            self._lost += int(missed[1])
            return
        if self._redirects > MAX_REDIRECTS or self._asked > MAX_ASKED:
            time.sleep(max(0.0, min(PAUSE_S, self._until - time.monotonic())))

    def take(self) -> int:
        """RTP packets lost while opening."""
        return self._lost

    def check(self, url: str) -> None:
        """Call it where the stream could not be opened.

        Raises:
            SourceError: because it leads to itself.
        """
        if self._redirects > MAX_REDIRECTS:
            times = f"{self._redirects} times, last to {self._target}"
            text = f"redirects in a circle ({times}); give the address at its end"
        elif self._asked > MAX_ASKED:
            text = (
                f"the playlist leads to itself, or to more than {MAX_ASKED} other addresses; give that of one variant"
            )
        else:
            return
        raise SourceError("unsupported", redact(f"{url}: {text}")) from None


class Listener(Protocol):
    """Takes lines of FFmpeg's log, on the thread that called FFmpeg."""

    def line(self, text: str) -> None:
        """Takes a line."""
        ...


class _Thread(threading.local):
    listener: Listener | None = None


_thread = _Thread()


def listen(listener: Listener | None) -> None:
    """Has lines of FFmpeg's log on this thread passed to `listener` from now on; None: to nobody."""
    if listener is not None:
        _hook()
    _thread.listener = listener


def _told(record: logging.LogRecord) -> bool:
    if (listener := _thread.listener) is not None:
        listener.line(record.getMessage())
    return False


def _hook() -> None:
    import av
    import av.logging

    # Such lines are no warnings.
    if (av.logging.get_level() or 0) < av.logging.INFO:
        logging.getLogger("libav").setLevel(logging.CRITICAL + 1)
        av.logging.set_skip_repeated(False)
        av.logging.set_level(av.logging.INFO)
    for name in ("rtsp", "sdp", "rtp", "http", "https", "hls", "dash", "mov,mp4,m4a,3gp,3g2,mj2"):
        logger = logging.getLogger(f"libav.{name}")
        if _told not in logger.filters:
            logger.setLevel(logging.INFO)
            logger.addFilter(_told)
