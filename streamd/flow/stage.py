"""One stage, one thread: the loop, the progress clock and error handling, shared by all stages."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Generic, TypeVar

import structlog

from streamd.flow.ring import Closed
from streamd.flow.threads import NamedThread

T = TypeVar("T")

log = structlog.get_logger(__name__)


class StageThread(Generic[T]):
    """Takes and processes items until the input is closed or processing fails.

    Args:
        name: name of the thread, in logs, and in the watchdog's message.
        take: waits for the next item; raises Closed if there will be none.
        work: processes an item and passes the result on. Its exceptions end the stage.
        close: closes the stage's output, so that the end cascades. Called exactly once, however the stage ends.
        fail: called with the exception that ended the stage, before `close`.
    """

    def __init__(
        self,
        name: str,
        *,
        take: Callable[[], T],
        work: Callable[[T], None],
        close: Callable[[], None],
        fail: Callable[[str, BaseException], None],
    ) -> None:
        self.name = name
        self._take = take
        self._work = work
        self._close = close
        self._fail = fail
        self._busy_since: float | None = None
        self._thread = NamedThread(self._run, name)

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def join(self, timeout: float | None = None) -> bool:
        """Waits for the stage to end; False where `timeout` seconds passed first."""
        self._thread.join(timeout)
        return not self._thread.is_alive()

    @property
    def alive(self) -> bool:
        """True while the thread runs."""
        return self._thread.is_alive()

    def busy_for(self) -> float:
        """Seconds spent on the current item so far; 0 while waiting for one, which is not a fault."""
        since = self._busy_since
        return 0.0 if since is None else time.monotonic() - since

    def _run(self) -> None:
        try:
            while True:
                item = self._take()
                self._busy_since = time.monotonic()
                self._work(item)
                del item  # otherwise this variable keeps the frame allocated while the stage waits for the next
                self._busy_since = None
        except Closed:
            pass
        except BaseException as error:  # noqa: BLE001 - the pipeline decides what a failed stage means
            self._fail(self.name, error)
        finally:
            self._busy_since = None
            self._close()
