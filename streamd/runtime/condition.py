"""Whether a daemon is healthy and ready: for its port, the service manager, the flight recorder and its parent."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from streamd.errors import BackendError, SourceError, StreamdError
from streamd.flow.status import StatusBoard
from streamd.runtime.eventlog import EventLog
from streamd.runtime.health import health_of, ready_of
from streamd.runtime.instance import ModelInstance
from streamd.runtime.scene import Scene
from streamd.runtime.service import condition_of, status_line
from streamd.runtime.streams import Streams
from streamd.sinks.thread import SinkThread
from streamd.telemetry.metrics import Metrics


class Condition:
    """Asks the parts of a daemon. Any thread.

    Args:
        boot_id: of the process.
        stall_s: how long a stage may make no progress, seconds.
        instances: all devices.
        streams: all streams.
        board: their statuses.
        sinks: all sinks.
        events: the journal.
        scene: the parts that look at published frames.
        metrics: all counters.
    """

    def __init__(
        self, boot_id: str, stall_s: Callable[[], float], instances: Sequence[ModelInstance], streams: Streams,
        board: StatusBoard, sinks: Sequence[SinkThread], events: EventLog, scene: Scene, metrics: Metrics,
    ) -> None:  # fmt: skip
        self._boot_id, self._stall_s = boot_id, stall_s
        self._instances, self._streams, self._board, self._sinks = instances, streams, board, sinks
        self._events, self._scene, self._metrics = events, scene, metrics
        self.started = False
        """Every part runs."""

    def problem(self) -> str | None:
        """Why the daemon is unhealthy; None if it is not. A dead stage is a fault of the daemon, a dead camera is
        not."""
        if not self.started:
            return None
        for instance in self._instances:
            if instance.pipeline.error is not None:
                return f"stage failed: {instance.pipeline.error}"
            stuck = instance.pipeline.stuck(self._stall_s())
            if stuck is not None:
                return f"stage {stuck} has made no progress for {self._stall_s():g} s"
        return None

    def health(self) -> tuple[bool, dict[str, Any]]:
        """Whether every stage that has work makes progress, and the health answer's body."""
        problem = self.problem()
        media = self._scene.problem or self._events.media_problem
        return problem is None, health_of(
            problem, self._boot_id, self._sinks, self._events.problem, self._board.all(), media
        )

    def ready(self) -> tuple[bool, dict[str, Any]]:
        """Whether a stream was live since the start (or all are over), and how each one is."""
        statuses = self._board.all()
        over = bool(statuses or self._streams.endless) and all(s.state in ("ENDED", "FAILED") for s in statuses)
        seen = bool(self._streams.live_seen) or over
        body = ready_of(self.started and seen and self.problem() is None, statuses, self._sinks)
        return body["ready"], body

    def line(self, refused: str) -> str:
        """For `systemctl status`. `refused`: why the latest configuration was rejected."""
        published = sum(s.published for s in self._metrics.streams())
        return status_line(map(condition_of, self._board.all()), published, refused)

    @property
    def over(self) -> bool:
        """Every instance has ended, or one has failed: a failed device ends the process, whatever the others do."""
        done = [instance.pipeline for instance in self._instances if instance.pipeline.done.is_set()]
        return len(done) == len(self._instances) or any(pipeline.error is not None for pipeline in done)

    def error(self) -> BaseException | None:
        """What has ended a stage."""
        errors = (instance.pipeline.error for instance in self._instances)
        return next((error for error in errors if error is not None), None)

    def exit_code(self) -> int:
        """At the end: 0, or that of the error."""
        error = self.error()
        if error is not None:
            return error.exit_code if isinstance(error, StreamdError) else BackendError.exit_code
        return SourceError.exit_code if self._streams.all_failed else 0
