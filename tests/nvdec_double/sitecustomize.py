"""A stand-in for NVDEC in every Python process that has this folder in PYTHONPATH: FFmpeg's software decoders, of which
only one at a time can be created on the whole machine, as the driver does it.

STREAMD_CREATE_S is how long that takes, STREAMD_CREATE_LOG a file: the lock, and a line for every decoder with the
monotonic seconds at which its creation began and ended. Of several files of this name Python imports only the first, so
what `tools/memory_in_use` does is done here, too.
"""

from __future__ import annotations

import fcntl
import os
import time
from typing import Any

from streamd.sources import av_connection
from streamd.sources.hardware import HardwareDecoder

CREATE_S, LOG = float(os.environ["STREAMD_CREATE_S"]), os.environ["STREAMD_CREATE_LOG"]
open_real = vars(av_connection)["open_container"]


class SlowDecoder(HardwareDecoder):
    """Is created by its first packet, as FFmpeg creates NVDEC's."""

    created = False

    def decode(self, packet: Any) -> list[Any]:
        if not self.created and packet is not None and packet.size:
            self.created = True
            with open(LOG, "a") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                began = time.monotonic()
                time.sleep(CREATE_S)
                lock.write(f"{began} {time.monotonic()}\n")
        return super().decode(packet)


def open_software(settings: Any, *, device: int | None, **more: Any) -> Any:
    return open_real(settings, device=None, **more)


vars(av_connection).update(open_container=open_software, HardwareDecoder=SlowDecoder)

if "STREAMD_MEMORY_LOG" in os.environ:
    import memory_log

    memory_log.begin()
