"""The kernel's name of a thread."""

from __future__ import annotations

import threading
from pathlib import Path

from streamd.flow.threads import NamedThread


def test_the_kernel_knows_the_name() -> None:
    seen: list[str] = []

    def look() -> None:
        seen.append(Path(f"/proc/self/task/{threading.get_native_id()}/comm").read_text().strip())

    thread = NamedThread(look, "source-a-very-long-name")
    thread.start()
    thread.join()
    assert seen == ["source-a-very-l"]
    assert thread.daemon
