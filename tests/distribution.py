"""Which worker of pytest-xdist takes which file: see `beside`."""

from __future__ import annotations

import contextlib
import os

from xdist.scheduler import LoadFileScheduling
from xdist.workermanage import WorkerController

from tests.beside import APART, BESIDE, WAIT, takes


class Scheduling(LoadFileScheduling):  # type: ignore[misc]
    """Files in their order, to each worker those that it may take; of some files, each test by itself."""

    def _split_scope(self, nodeid: str) -> str:
        """What is given to a worker as a whole."""
        file: str = super()._split_scope(nodeid)
        return nodeid if file.startswith(APART) else file

    def _takes(self, node: WorkerController) -> tuple[str, ...] | None:
        count = int(node.workerinput["workercount"])
        return takes(node.gateway.id, count, len(os.sched_getaffinity(0)))

    def _next(self, node: WorkerController) -> str | None:
        """The file that `node` takes next."""
        own = self._takes(node)
        if own is not None and not all(n.shutting_down or self._takes(n) is not None for n in self.nodes):
            return self._first(own)
        # First what only these workers take.
        others = (file for file in self.workqueue if not file.startswith(WAIT + BESIDE))
        return next(others, self._first((*WAIT, *BESIDE)))

    def _first(self, names: tuple[str, ...]) -> str | None:
        """The first file of the first of these names that has one."""
        return next((file for name in names for file in self.workqueue if file.startswith(name)), None)

    def _assign_work_unit(self, node: WorkerController) -> None:
        file = self._next(node)
        if file is not None:
            self.workqueue.move_to_end(file, last=False)
            with contextlib.suppress(OSError):  # it has died, and `remove_node` gives its work to others
                super()._assign_work_unit(node)

    def _reschedule(self, node: WorkerController) -> None:
        if node not in self.registered_collections:
            return  # a new one in place of one that died: it is still collecting
        # A worker begins with its last test only when it knows what comes then.
        while not node.shutting_down and self._pending_of(self.assigned_work[node]) < 2:
            if self._next(node) is None:
                node.shutdown()
            else:
                self._assign_work_unit(node)

    def remove_node(self, node: WorkerController) -> str | None:
        """The test that `node` died of, which is not run again; others take the rest of its files."""
        files = self.assigned_work.pop(node)
        died_of: str | None = next((test for tests in files.values() for test, done in tests.items() if not done), None)
        if died_of is None:
            return None
        files[self._split_scope(died_of)][died_of] = True
        self.workqueue.update({file: tests for file, tests in files.items() if not all(tests.values())})
        for other in self.nodes:
            self._reschedule(other)
        return died_of
