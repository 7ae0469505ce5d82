"""Which worker runs which stream."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from streamd.config import Config
from streamd.runtime.drain import WORKER_SHARE


def devices_of(config: Config) -> list[int | None]:
    """The device of each worker in turn; None if the engine has no devices."""
    known: list[int | None] = list(config.engine.devices) if config.engine.names_devices else [None]
    assert config.workers != "auto", "see `auto.settle`"
    return [known[i % len(known)] for i in range(config.workers)]


def share_out(
    streams: Iterable[Any], devices: Sequence[int | None], before: Mapping[str, int] | None = None
) -> dict[str, int]:
    """The worker of each stream, by its id.

    A stream stays where it was; a new one goes to the worker with the fewest streams among those with the requested
    device. A reload therefore moves no stream unnecessarily.

    Args:
        streams: settings with `id` and `device`.
        devices: see `devices_of`.
        before: the previous shares, including streams that are currently removed.
    """
    before = before or {}
    load = [0] * len(devices)
    shares: dict[str, int] = {}

    def fits(stream: Any, worker: int) -> bool:
        return stream.device is None or devices[worker] in (None, stream.device)

    waiting = []
    for stream in streams:
        worker = before.get(stream.id)
        if worker is not None and fits(stream, worker):
            shares[stream.id] = worker
            load[worker] += 1
        else:
            waiting.append(stream)
    for stream in waiting:
        worker = min((w for w in range(len(devices)) if fits(stream, w)), key=lambda w: load[w])
        shares[stream.id] = worker
        load[worker] += 1
    return shares


def config_of(config: Config, worker: int, shares: Mapping[str, int], without: Collection[str] = ()) -> Config:
    """The configuration of one worker: its streams, its device, no port.

    Args:
        config: the complete configuration.
        worker: its number.
        shares: see `share_out`.
        without: streams to leave out for now.
    """
    device = devices_of(config)[worker]
    engine = config.engine
    if device is not None:
        engine = engine.for_device(device)
    return config.model_copy(
        update={
            "streams": tuple(s for s in config.streams if shares[s.id] == worker and s.id not in without),
            "engine": engine,
            "workers": 1,
            "tracking": config.tracker,
            "metrics": config.metrics.model_copy(update={"listen": None}),
            "drain_s": config.drain_s * WORKER_SHARE,
        }
    )
