"""Measures the machine for `gpu_suite.py`: its decoders alone, and the values of nvidia-smi."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import subprocess
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

Table = dict[str, Any]
FIRST = 5
"""Pictures of each decoder before counting starts."""
OPEN_LIMIT_S = 120.0


def _decode(clip: Path, streams: int, seconds: float, owned: bool, barrier: Any, begin: Any, out: Any) -> None:
    """One process of `decode_alone`."""
    import av
    from av.codec.hwaccel import HWAccel

    from streamd.engine.tensorrt.cuda import Device

    device = Device(0)  # the primary context with FFmpeg's own flags, as in the daemon
    counts, failed = [0] * streams, [0]
    go, stop = threading.Event(), threading.Event()

    def work(index: int) -> None:
        try:
            accelerator = HWAccel("cuda", device="0", allow_software_fallback=False, is_hw_owned=owned)
            container = av.open(str(clip), hwaccel=accelerator)
            stream = container.streams.video[0]
            while not stop.is_set():
                for packet in container.demux(stream):
                    counts[index] += len(packet.decode())
                    if counts[index] > FIRST:
                        go.wait()
                    if stop.is_set():
                        break
                else:
                    container.seek(0)
                    stream.codec_context.flush_buffers()
            container.close()
        except Exception:  # noqa: BLE001 - how many failed is told
            failed[0] += 1

    threads = [threading.Thread(target=work, args=(i,)) for i in range(streams)]
    barrier.wait(OPEN_LIMIT_S)
    asked = time.monotonic()
    for thread in threads:
        thread.start()
    # Decoders take 50 ms and more each to be created, one after another: the output of all of them together is counted.
    while sum(count > FIRST for count in counts) < streams - failed[0]:
        time.sleep(0.01)
    opened = time.monotonic() - asked
    barrier.wait(OPEN_LIMIT_S)
    go.set()
    while begin.value == 0:
        time.sleep(0.002)
    time.sleep(max(0.0, begin.value - time.monotonic()))
    before, started = sum(counts), time.monotonic()
    time.sleep(seconds)
    done, elapsed = sum(counts) - before, time.monotonic() - started
    stop.set()
    for thread in threads:
        thread.join()
    device.close()
    out.put((done / elapsed, failed[0], opened))


def decode_alone(clip: Path, streams: int, seconds: float, *, owned: bool = True, processes: int = 1) -> Table:
    """Frames per second of decoders that are opened at once and kept, without further processing, and the seconds until
    each of them has given its first pictures.

    Args:
        clip: what all of them decode, in a loop.
        streams: how many, over all processes.
        seconds: of counting.
        owned: frames stay on the GPU; False copies each to the host.
        processes: one process does not reach the chip's limit.
    """
    context = multiprocessing.get_context("spawn")
    barrier, begin, out = context.Barrier(processes + 1), context.Value("d", 0.0), context.Queue()
    each = streams // processes
    children = [
        context.Process(target=_decode, args=(clip, each, seconds, owned, barrier, begin, out), daemon=True)
        for _ in range(processes)
    ]
    for child in children:
        child.start()
    try:
        barrier.wait(OPEN_LIMIT_S)  # all processes have their context
        barrier.wait(OPEN_LIMIT_S)  # and all their decoders
        with Gpu([0]) as gpu:
            begin.value = time.monotonic() + 0.5
            found = [out.get(timeout=OPEN_LIMIT_S) for _ in children]
    finally:
        for child in children:
            child.join(30)
            child.kill()
    return {
        "fps": round(sum(fps for fps, _, _ in found)), "failed": sum(failed for _, failed, _ in found),
        "opened_s": round(max(opened for _, _, opened in found), 2),
        "gpu_decoder_mib": gpu.means,
    }  # fmt: skip


class Gpu:
    """Values of nvidia-smi during a measurement: utilisation of the GPU and of its decoders in percent, and MiB of
    memory.

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
