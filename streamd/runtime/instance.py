"""One device: its backend, the batcher that feeds it, and the three stages around it."""

from __future__ import annotations

import threading
from functools import partial
from typing import Any

from streamd import __version__
from streamd.analysis.glance.picture import SurfaceReader
from streamd.config import Config
from streamd.engine import EngineSettings, open_backend
from streamd.flow.batcher import Batcher
from streamd.flow.pipeline import Pipeline
from streamd.flow.ring import Bell, Ring
from streamd.flow.stream import StreamOutput
from streamd.heads.detector import open_detector
from streamd.runtime.analytics import Analytics
from streamd.telemetry.metrics import Metrics
from streamd.types import Frame
from streamd.web.tap import Tap


class ModelInstance:
    """Opens the model on one device and starts its backend.

    Args:
        config: the whole configuration.
        engine: the engine's settings with one device.
        ordinal: number of the device in the configuration.
        several: True if there are other instances: the names of queues then include the ordinal.
        live: see `open_backend`.
        metrics: counters and times.
        analytics: creates the instance's analysis; None for none.
        tap: receives small pictures of frames in device memory; None without a page.

    Raises:
        StreamdError: the model or the device cannot be used; nothing stays open.
    """

    def __init__(
        self,
        config: Config,
        engine: EngineSettings,
        ordinal: int,
        *,
        several: bool,
        live: bool,
        metrics: Metrics,
        analytics: Analytics | None = None,
        tap: Tap | None = None,
    ) -> None:
        self.ordinal = ordinal
        self.streams = 0
        """Number of streams that it serves."""
        self._closing = threading.Lock()
        self._downloading = threading.Lock()
        self._closed = False
        self.bell = Bell()
        backend = self.backend = open_backend(engine, config.model, batch=config.batch, live=live)
        detect = analytics.detect if analytics is not None else config.model.detect
        try:
            detector = open_detector(backend.spec, config.model.head, detect)
            backend.start(detector.plan)
        except BaseException:
            backend.close()
            raise
        self.model = detector.model
        self.decoder_device: int | None = backend.device
        """CUDA ordinal whose decoders hand frames over without a copy; None for software."""
        if tap is not None and self.decoder_device is not None:
            tap.downloads[self.decoder_device] = self.thumbnail
        metrics.build_info.labels(version=__version__, backend=backend.title, model=backend.spec.name).set(1)
        for kind in backend.memory:
            gauge = metrics.device_memory.labels(device=str(ordinal), kind=kind)
            gauge.set_function(partial(self._memory, backend, kind))
        self.pictures = (len(backend.slots) + 1) * backend.spec.max_batch
        """Largest number of pictures that it may hold: they are released with their detections, and one batch is being
        built."""
        self.batcher = Batcher(backend.spec.max_batch, config.batch.age_ms / 1e3, self.bell)
        name = f"-{ordinal}" if several else ""
        analysis = analytics.step(self.model) if analytics is not None else None
        self.pipeline = Pipeline(backend, self.batcher, detector.postprocess, self.model, metrics, name, analysis)

    def thumbnail(self, frame: Frame, width: int, height: int) -> Any:
        """See `Backend.thumbnail`. Any thread, one at a time."""
        backend: Any = self.backend
        with self._downloading:
            return backend.thumbnail(frame, width, height)

    def surface_reader(self) -> SurfaceReader | None:
        """See `Backend.surface_reader`."""
        return self.backend.surface_reader()

    def _memory(self, backend: Any, kind: str) -> float:
        """Bytes of device memory. May be read at any time: a worker's last report is made after the device was
        closed."""
        with self._closing:
            return 0.0 if self._closed else float(backend.memory.get(kind, 0))

    def close(self) -> None:
        """Closes the backend; nothing of the pipeline may be running. Idempotent."""
        with self._closing:
            if not self._closed:
                self._closed = True
                self.backend.close()

    def add(self, output: StreamOutput, ring: Ring[Frame], priority: int, max_age_s: float | None) -> None:
        """Adds a stream, whose ring rings this instance's bell; see `Batcher.add`."""
        self.streams += 1
        self.pipeline.add(output)
        self.batcher.add(output.name, ring, priority, max_age_s)

    def remove(self, stream: str) -> None:
        """Removes the stream."""
        self.streams -= 1
        self.batcher.remove(stream)
        self.pipeline.remove(stream)
