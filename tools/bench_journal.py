"""Measures the event journal: cost of submitting, commit latency, sustained rate, queries, deletion.

    python tools/bench_journal.py FOLDER [--rows 500000] [--json]

FOLDER must be on the disk to measure; no files are left in it.
"""

from __future__ import annotations

import argparse
import json
import sqlite3
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from streamd.events.journal import Journal
from streamd.events.place import JOURNAL
from streamd.events.query import Filter
from streamd.events.record import Event, Record
from streamd.events.schema import open_writer
from streamd.events.store import Store
from streamd.telemetry.logs import configure

DETAILS = {"direction": "in", "box": [101.5, 202.25, 303.5, 404.75], "speed_px_s": 41.2, "settle_s": 0.8}


def made(number: int, streams: int = 32) -> Event:
    """One event of a line; every third is of the same object."""
    return Event(
        id=f"boot/1/{number}", stream=f"cam{number % streams}", kind="instant", type="line_crossed", rule="gate",
        label="person", track=f"boot/1/{number // 3}", epoch=1, seq=number, at_ns=time.time_ns(), details=DETAILS,
        counts={"gate/in/person": 1},
    )  # fmt: skip


def ranks(values: Sequence[float], scale: float) -> dict[str, float]:
    """Median, p99 and maximum."""
    ordered = sorted(values)
    at = {"p50": 0.5, "p99": 0.99, "max": 1.0}
    return {name: round(ordered[min(len(ordered) - 1, int(q * len(ordered)))] * scale, 2) for name, q in at.items()}


def latency(folder: Path, rate: float, seconds: float) -> dict[str, Any]:
    """Cost of submitting in µs, and milliseconds from there to the listener, at the given number of events per
    second."""
    journal = Journal(folder)
    submitted: dict[int, float] = {}
    committed: dict[int, float] = {}

    def listen(records: Sequence[Record]) -> None:
        now = time.perf_counter()
        committed.update((r.seq, now) for r in records)

    journal.listen(listen)
    journal.start()
    journal.flush()
    costs = []
    start = time.perf_counter()
    for number in range(int(rate * seconds)):
        wait = start + number / rate - time.perf_counter()
        if wait > 0:
            time.sleep(wait)
        event = made(number)
        before = time.perf_counter()
        submitted[number] = before
        journal.submit(event)
        costs.append(time.perf_counter() - before)
    journal.flush(60)
    waits = [committed[n] - submitted[n] for n in submitted]
    status = journal.status()
    journal.close()
    return {"submit_us": ranks(costs, 1e6), "commit_ms": ranks(waits, 1e3), "lost": status.lost}


def sustained(folder: Path, seconds: float) -> dict[str, float]:
    """Events per second while 9,000 are always waiting."""
    journal = Journal(folder)
    done = threading.Event()
    journal.start()
    journal.flush()

    def feed() -> None:
        number = 0
        while not done.is_set():
            if journal.status().waiting < 9000:
                for _ in range(500):
                    journal.submit(made(number))
                    number += 1
            else:
                time.sleep(0.002)

    thread = threading.Thread(target=feed)
    thread.start()
    first, start, cpu = journal.status().committed, time.perf_counter(), time.process_time()
    time.sleep(seconds)
    count, span = journal.status().committed - first, time.perf_counter() - start
    busy = time.process_time() - cpu
    done.set()
    thread.join()
    journal.close(60)
    return {"events_per_s": round(count / span), "cpu_us_per_event": round(busy / max(1, count) * 1e6, 1)}


def large(folder: Path, rows: int) -> dict[str, Any]:
    """Queries and a deletion with many rows."""
    store = Store(open_writer(folder / JOURNAL))
    store.connection.execute("PRAGMA synchronous=OFF")
    start = time.time_ns() - rows * 1_000_000_000
    for first in range(0, rows, 10_000):
        store.begin()
        for number in range(first, min(rows, first + 10_000)):
            store.add(msgspec.structs.replace(made(number), at_ns=start + number * 10**9))
        store.commit()
    store.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    store.connection.close()
    size = (folder / JOURNAL).stat().st_size
    began = time.perf_counter()
    journal = Journal(folder)
    result: dict[str, Any] = {"rows": rows, "bytes_per_event": round(size / rows), "open_ms": since(began)}
    journal.start()
    journal.flush()
    middle = start + rows // 2 * 10**9
    asked = {
        "newest_100_ms": Filter(newest_first=True),
        "newest_100_of_a_stream_ms": Filter(streams=["cam3"], newest_first=True),
        "an_hour_in_the_middle_ms": Filter(since_ns=middle, until_ns=middle + 3600 * 10**9, newest_first=True),
        "no_such_label_ms": Filter(labels=["elephant"]),
    }
    for name, wanted in asked.items():
        began = time.perf_counter()
        journal.find(wanted)
        result[name] = since(began)
    began = time.perf_counter()
    deleted = journal.delete("cam3", middle, middle + 86_400 * 10**9, 120)
    result["delete_ms"], result["deleted"] = since(began), deleted.events
    journal.close()
    return result


def since(began: float) -> float:
    """Milliseconds."""
    return round((time.perf_counter() - began) * 1e3, 1)


def main() -> None:
    """Prints a line for each measurement."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, help="on the disk to be measured")
    parser.add_argument("--rows", type=int, default=500_000, help="of the large journal (default 500000)")
    parser.add_argument("--seconds", type=float, default=5.0, help="for each measurement (default 5)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    args = parser.parse_args()
    configure("error")
    result: dict[str, Any] = {"sqlite": sqlite3.sqlite_version}
    for rate in (10.0, 100.0, 1000.0):
        with tempfile.TemporaryDirectory(dir=args.folder) as folder:
            result[f"at_{rate:g}_per_s"] = latency(Path(folder), rate, args.seconds)
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        result["sustained"] = sustained(Path(folder), args.seconds)
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        result["large"] = large(Path(folder), args.rows)
    if args.json:
        print(json.dumps(result))
    else:
        for name, value in result.items():
            print(f"{name:<16} {value}")


if __name__ == "__main__":
    main()
