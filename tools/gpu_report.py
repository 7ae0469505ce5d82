"""How `gpu_suite.py` shows what the daemon's steps measured."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

Table = dict[str, Any]


def figures(r: Table) -> str:
    """What one run of the daemon gave, in a line."""
    if "error" in r:
        return str(r["error"])
    stages = " ".join(f"{k[:4]} {v['p50']}/{v['p99']}" for k, v in r["stage_ms"].items())
    latency, share = r["latency_ms"], f"{r['share_min']:.2f}-{r['share_max']:.2f}"
    return (
        f"{r['fps']:8.1f} fps  p50 {latency['p50']} p99 {latency['p99']} ms  {stages}  "
        f"CPU {r['cpu_ms_per_frame']:.2f} ms/f  drop {r['dropped']} gaps {r['unexplained_gaps']} share {share} "
        f"batch {r['batch_mean']} device ms {r['device_ms_per_batch']}  "
        f"RSS {r['rss_mb']:.0f}  GIL {r['gil_share']}  gpu/dec/MiB {r['gpu_decoder_mib']}  "
        f"page {r['page_pictures_s']}/{r['page_without_picture']}  threads, ms/f {r['threads_ms_per_frame']}"
        + "".join(f"\n    lock {share:.1%} {frame}" for frame, share in r["gil_held_by"].items())
    )


def print_table(out: Path) -> None:
    """The daemon's figures of all steps that lie in `out`."""
    rows = []
    for step in ("flow", "paced", "live", "copyback", "memory"):
        with contextlib.suppress(OSError):
            for name, r in json.loads((out / f"{step}.json").read_text()).items():
                if isinstance(r, dict) and "fps" in r:
                    gpu = r["gpu_decoder_mib"] or ["", "", ""]
                    cells = [r["fps"], r["latency_ms"]["p50"], r["latency_ms"]["p99"], r["dropped"]]
                    cells += [r["batch_mean"], r["cpu_ms_per_frame"], r["gil_share"], r["rss_mb"], *gpu]
                    rows.append([f"{step}: {name}", *cells])
                elif isinstance(r, dict) and "error" in r:
                    rows.append([f"{step}: {name}", r["error"]])
    head = ["", "frames/s", "p50 ms", "p99 ms", "dropped", "batch", "CPU ms/f", "GIL", "RSS MB"]
    head += ["GPU %", "dec %", "MiB"]
    for row in [head, *rows] if rows else []:
        cells = [f"{c:.4g}" if isinstance(c, float) and c < 1000 else f"{c:.0f}" if isinstance(c, float) else str(c)
                 for c in row[1:]]  # fmt: skip
        print(f"{row[0]:<52}" + "".join(f"{cell:>10}" for cell in cells))
