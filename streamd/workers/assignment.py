"""Which worker runs each stream, and what each worker is told."""

from __future__ import annotations

import itertools
import os
from dataclasses import replace

from streamd.config import Config
from streamd.runtime.eventlog import media_dir
from streamd.security.redact import known
from streamd.types import StreamCounts, StreamPast
from streamd.workers.channels import Channels
from streamd.workers.ledger import Ledger
from streamd.workers.process import WorkerProcess
from streamd.workers.report import Order
from streamd.workers.share import config_of, devices_of, share_out


class Assignment:
    """The streams of all workers. For the main thread, except `homes`.

    Args:
        config: the first one.
        name: of the configuration, in names of files.
        boot_id: of the daemon.
        channels: the parent's ends of what workers send.
        ledger: the parent's view of each stream.
    """

    def __init__(self, config: Config, name: str, boot_id: str, channels: Channels, ledger: Ledger) -> None:
        self._name, self._boot_id, self._channels, self._ledger = name, boot_id, channels, ledger
        self.shares = share_out(config.streams, devices_of(config))
        """The worker that runs each stream, or is to run it."""
        self.homes = dict(self.shares)
        """The worker that runs each stream, or ran it last."""
        self._numbers, self._lives = itertools.count(1), itertools.count(1)

    def of(self, worker: WorkerProcess) -> list[str]:
        """The streams that the worker runs or is to run."""
        return [s for s, number in self.shares.items() if number == worker.number and s not in worker.over]

    def last_of(self, worker: WorkerProcess) -> list[str]:
        """Those that it runs or ran last."""
        return [s for s, number in self.homes.items() if number == worker.number]

    def next(self, config: Config) -> tuple[dict[str, int], set[str]]:
        """Shares for another configuration, and the streams that leave their worker for it."""
        shares = share_out(config.streams, devices_of(config), self.homes)
        return shares, {s for s, number in shares.items() if s in self.shares and self.shares[s] != number}

    def move(self, config: Config) -> dict[str, int]:
        """Shares for a configuration whose other streams stay where they are."""
        return share_out(config.streams, devices_of(config), self.shares)

    def arrive(self) -> None:
        """Every worker was told of its streams."""
        self.homes |= self.shares

    def first_order(self, worker: WorkerProcess, config: Config) -> Order:
        """For a new process."""
        return self.order(worker, config, next(self._lives))

    def order(self, worker: WorkerProcess, config: Config, life: int) -> Order:
        """What the worker is told to run of `config`, and where each stream continues that is new to it."""
        number, channels = worker.number, self._channels
        if worker.running:
            mine = {s for s, n in self.shares.items() if n == number and self.homes.get(s) != number}
        else:
            mine = {s for s, n in {**self.homes, **self.shares}.items() if n == number}
        past: dict[str, StreamPast] = {s: p for s in mine if (p := self._past(s)) is not None}
        share = config_of(config, number, self.shares, without=worker.over)
        media = config.media.model_copy(update={"folder": str(media_dir(config, self._name))})
        share = share.model_copy(update={"media": media})
        return Order(
            next(self._numbers), life, os.getpid(), self._boot_id, share.model_dump(mode="json"), list(known()),
            channels.relays(), channels.endpoint("reports"), channels.endpoint("pictures"),
            f"{self._name}-worker{number}", past, channels.endpoint("events"),
        )  # fmt: skip

    def _past(self, stream: str) -> StreamPast | None:
        """Where the stream and its rules continue; None if nothing is known of either."""
        past, rules = self._ledger.past(stream), self._channels.events.rules(stream)
        if rules is None:
            return past
        return replace(past or StreamPast(-1, StreamCounts()), rules=rules)
