"""Which worker of pytest-xdist takes which file: see `beside`."""

from __future__ import annotations

import os

from xdist.scheduler import LoadFileScheduling
from xdist.workermanage import WorkerController

from tests.beside import BESIDE, runs_beside


class Scheduling(LoadFileScheduling):  # type: ignore[misc]
    """Files in their order, to each worker those that it may take."""

    def _beside(self, node: WorkerController) -> bool:
        count = int(node.workerinput["workercount"])
        return runs_beside(node.gateway.id, count, len(os.sched_getaffinity(0)))

    def _next(self, node: WorkerController) -> str | None:
        """The file that `node` takes next."""
        if self._beside(node) and not all(n.shutting_down or self._beside(n) for n in self.nodes):
            return next((file for file in self.workqueue if file.startswith(BESIDE)), None)
        # First what only these workers take.
        waits = (file for file in self.workqueue if not file.startswith(BESIDE))
        return next(waits, next(iter(self.workqueue), None))

    def _assign_work_unit(self, node: WorkerController) -> None:
        file = self._next(node)
        if file is not None:
            self.workqueue.move_to_end(file, last=False)
            super()._assign_work_unit(node)

    def _reschedule(self, node: WorkerController) -> None:
        if self.workqueue and self._next(node) is None:
            node.shutdown()
        super()._reschedule(node)
