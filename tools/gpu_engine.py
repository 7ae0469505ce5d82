"""Measures a TensorRT plan alone on the GPU, for the steps `engine` and `layers` of `gpu_suite.py`."""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Any

Table = dict[str, Any]
BATCHES = (1, 2, 4, 8, 16, 32, 64)
LISTED = 12


def _backend(plan: Path, conf: float, **settings: Any) -> Any:
    from streamd.engine import BatchSettings, ModelSettings, open_backend
    from streamd.engine.tensorrt import TensorRtSettings
    from streamd.heads import DetectSettings
    from streamd.heads.select import open_head

    backend = open_backend(TensorRtSettings(**settings), ModelSettings(path=str(plan)), batch=BatchSettings())
    backend.start(open_head(None, backend.spec, DetectSettings(conf=conf)).plan)
    return backend


def _frames(count: int) -> list[Any]:
    from streamd.sources import open_source
    from streamd.sources.synthetic import SyntheticStreamSettings

    source = open_source(SyntheticStreamSettings(id="s", width=640, height=640, fps=0, count=count))
    source.open()
    return list(source.frames())


def engine_times(plan: Path, graphs: str, conf: float, rounds: int = 200) -> Table:
    """Per batch size: median device milliseconds of network and decode, images a second with all slots busy, and the
    most candidates a frame that NMS had to do with (None where the host decodes).

    Args:
        plan: the plan.
        graphs: engine.graphs.
        conf: detect.conf. Random weights yield thousands of candidates per frame, unlike a trained network.
        rounds: number of batches for the median.
    """
    backend = _backend(plan, conf, graphs=graphs)
    out: Table = {}
    try:
        for batch in [b for b in BATCHES if b <= backend.spec.max_batch]:
            frames = _frames(batch)
            for slot in backend.slots:
                backend.preprocess(slot, frames)
                backend.infer(slot)
                backend.collect(slot)
            slot = backend.slots[0]
            times = []
            for _ in range(rounds):
                backend.infer(slot)
                backend.collect(slot)
                times.append(backend.device_times(slot)["infer"] * 1e3)
            slots = backend.slots
            for s in slots:
                backend.infer(s)
            begin = time.monotonic()
            turns = max(rounds, 3 * len(slots))
            for i in range(turns):
                s = slots[i % len(slots)]
                backend.collect(s)
                backend.infer(s)
            elapsed = time.monotonic() - begin
            for s in slots:
                backend.collect(s)
            out[str(batch)] = {
                "ms": round(statistics.median(times), 4), "images_s": round(turns * batch / elapsed),
                "candidates": None if slot.raw else max(slot.counts()),
            }  # fmt: skip
    finally:
        backend.close()
    return out


def layer_times(plan: Path, batch: int, rounds: int = 50) -> Table:
    """Time per layer by TensorRT's own profiler: mean milliseconds, the slowest first.

    With the profiler, layers run one by one, so their sum exceeds the network's time without it.
    """
    from streamd.engine.tensorrt.cuda import Device
    from streamd.engine.tensorrt.runtime import Network
    from streamd.engine.tensorrt.slot import tensor_bytes
    from streamd.engine.tensorrt.version import load_trt, vendor_logger

    trt, device = load_trt(), Device(0)
    network = Network(plan, trt, vendor_logger(), device)
    spent: dict[str, float] = {}
    base: Any = trt.module.IProfiler

    class Profiler(base):  # type: ignore[misc]
        def __init__(self) -> None:
            base.__init__(self)

        def report_layer_time(self, layer: str, ms: float) -> None:
            spent[layer] = spent.get(layer, 0.0) + ms

    stream = device.stream()
    network.open_contexts(1, stream)
    execution = network.execution(0)
    try:
        image, outputs = network.plan.inputs[0], network.settle_outputs(network.plan.inputs[0])
        execution.set_batch(image, batch)
        addresses = [(t.name, device.allocate(tensor_bytes(t, batch)).address) for t in (image, *outputs)]
        profiler = Profiler()
        with device:
            for turn in range(rounds + 5):
                if turn == 5:
                    execution.profile(profiler)
                execution.enqueue(addresses, stream)
                stream.synchronize()
    finally:
        network.close()
        device.close()
    each = sorted(((name, round(ms / rounds, 5)) for name, ms in spent.items()), key=lambda item: -item[1])
    moved = [ms for name, ms in each if "reformat" in name.lower() or "copy" in name.lower()]
    return {
        "layers": len(each), "ms": round(sum(ms for _, ms in each), 4), "reformats": len(moved),
        "reformats_ms": round(sum(moved), 4), "slowest": [(name[-90:], round(ms, 4)) for name, ms in each[:LISTED]],
        "all": each,
    }  # fmt: skip
