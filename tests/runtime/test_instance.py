"""An instance is closed while others may still read its figures."""

from __future__ import annotations

import pytest
from prometheus_client import CollectorRegistry

from streamd.config import Config
from streamd.engine.null import NullBackend, NullSettings
from streamd.errors import BackendError
from streamd.runtime import instance as instance_module
from streamd.runtime.instance import ModelInstance
from streamd.telemetry.metrics import Metrics


class WithMemory(NullBackend):
    """A device whose memory can be asked for only while it is open, as CUDA's."""

    closed = 0

    @property
    def memory(self) -> dict[str, int]:
        if self.closed:
            raise BackendError("closed")
        return {"buffers": 4096}

    def close(self) -> None:
        self.closed += 1
        super().close()


def test_memory_is_told_before_and_after_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = NullSettings(kind="null")
    monkeypatch.setattr(
        instance_module, "open_backend", lambda engine, model, *, batch, live: WithMemory(engine, model, batch=batch)
    )
    config = Config.model_validate({
        "model": {"path": "none"}, "engine": {"kind": "null"}, "streams": [{"id": "a", "kind": "synthetic"}],
        "sinks": [{"kind": "jsonl", "path": "-"}],
    })  # fmt: skip
    registry = CollectorRegistry()
    instance = ModelInstance(config, settings, 0, several=False, live=False, metrics=Metrics(registry))

    def told() -> float | None:
        return registry.get_sample_value("streamd_device_memory_bytes", {"device": "0", "kind": "buffers"})

    assert told() == 4096
    instance.close()
    instance.close()
    assert told() == 0
    assert isinstance(instance.backend, WithMemory)
    assert instance.backend.closed == 1
