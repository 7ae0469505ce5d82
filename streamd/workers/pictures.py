"""Pictures for the page: each worker makes those of its own streams while somebody is watching."""

from __future__ import annotations

import contextlib
from typing import Any

from streamd.flow.threads import NamedThread
from streamd.web.page import record
from streamd.web.tap import Tap

_HWM = 64
"""Pictures in transit; a viewer needs only the newest."""
_WAIT_S = 0.5


class PictureSender:
    """The worker's side. Ends with the tap.

    Args:
        tap: receives pictures from the pipeline.
        endpoint: the parent's address.
    """

    def __init__(self, tap: Tap, endpoint: str) -> None:
        self._tap, self._endpoint = tap, endpoint
        NamedThread(self._run, "pictures").start()

    def _run(self) -> None:
        import zmq

        serial = 0
        with zmq.Context() as context, context.socket(zmq.PUSH) as socket:
            socket.setsockopt(zmq.SNDHWM, _HWM)
            socket.setsockopt(zmq.LINGER, 0)
            socket.connect(self._endpoint)
            while (snapshots := self._tap.newer(None, serial, _WAIT_S)) is not None:
                for snapshot in snapshots:
                    serial = snapshot.serial
                    with contextlib.suppress(zmq.Again):  # the parent's queue is full
                        socket.send_multipart((snapshot.stream.encode(), record(snapshot)), zmq.DONTWAIT)


class PictureReceiver:
    """The parent's side.

    Args:
        tap: the page's.
        endpoint: ipc:// address to bind.
    """

    def __init__(self, tap: Tap, endpoint: str) -> None:
        import zmq

        self._tap = tap
        self._closing = False
        self._context: Any = zmq.Context()
        self._socket = self._context.socket(zmq.PULL)
        self._socket.setsockopt(zmq.RCVHWM, _HWM)
        self._socket.bind(endpoint)
        self._thread = NamedThread(self._run, "pictures")
        self._thread.start()

    def _run(self) -> None:
        while not self._closing:
            if self._socket.poll(int(_WAIT_S * 1000)):
                stream, made = self._socket.recv_multipart()
                self._tap.put(stream.decode(), made)
        self._socket.close(0)
        self._context.term()

    def close(self) -> None:
        """Ends the thread."""
        self._closing = True
        self._thread.join(2 * _WAIT_S)
