"""The machine under `gpu_suite.py`: its decoders alone, and what nvidia-smi says meanwhile."""

from __future__ import annotations

import contextlib
import os
import subprocess
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

Table = dict[str, Any]


def decode_alone(clip: Path, streams: int, seconds: float, owned: bool) -> Table:
    """Frames a second of `streams` decoders that are opened once and kept."""
    import av
    from av.codec.hwaccel import HWAccel

    counts = [0] * streams
    stop = threading.Event()
    opened = threading.Barrier(streams + 1)
    failed: list[str] = []

    def work(index: int) -> None:
        try:
            accelerator = HWAccel("cuda", device="0", allow_software_fallback=False, is_hw_owned=owned)
            container = av.open(str(clip), hwaccel=accelerator)
            stream = container.streams.video[0]
        except Exception as error:  # noqa: BLE001
            failed.append(str(error))
            opened.wait()
            return
        opened.wait()
        while not stop.is_set():
            for packet in container.demux(stream):
                counts[index] += len(packet.decode())
                if stop.is_set():
                    break
            else:
                container.seek(0)
                stream.codec_context.flush_buffers()
        container.close()

    threads = [threading.Thread(target=work, args=(i,)) for i in range(streams)]
    for thread in threads:
        thread.start()
    opened.wait()
    time.sleep(0.7)
    before, begin = sum(counts), time.monotonic()
    time.sleep(seconds)
    done, elapsed = sum(counts) - before, time.monotonic() - begin
    stop.set()
    for thread in threads:
        thread.join()
    return {"fps": round(done / elapsed), "failed": failed[:1]}


class Gpu:
    """What nvidia-smi says while a measurement runs: percent busy, percent of the decoders, MiB.

    Args:
        ordinals: of the GPUs, as CUDA counts them among those that CUDA_VISIBLE_DEVICES leaves; of several, the mean.
    """

    means: list[float]
    mib_by_minute: list[float]

    def __init__(self, ordinals: Sequence[int]) -> None:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
        self._which = [visible.split(",")[i] if visible else str(i) for i in ordinals]

    def __enter__(self) -> Gpu:
        query = "--query-gpu=utilization.gpu,utilization.decoder,memory.used"
        format_ = "--format=csv,noheader,nounits"
        command = ["nvidia-smi", "-i", ",".join(self._which), query, format_, "-lms", "500"]
        self._process: subprocess.Popen[str] | None = None
        with contextlib.suppress(FileNotFoundError):
            self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        return self

    def __exit__(self, *_: object) -> None:
        text = ""
        if self._process is not None:
            self._process.terminate()
            text = self._process.communicate()[0]
        rows = [
            [float(v) for v in line.split(",")]
            for line in text.splitlines()
            if line.count(",") == 2 and "N/A" not in line
        ]
        gpus = len(self._which)
        # nvidia-smi tells them in turn, a row each; the last turn may be cut off.
        turns = np.reshape(rows[: len(rows) // gpus * gpus], (-1, gpus, 3)).mean(axis=1)
        self.means = np.round(turns[len(turns) // 3 :].mean(axis=0), 1).tolist() if len(turns) else []
        self.mib_by_minute = turns[len(turns) % 120 :: 120, 2].tolist()
