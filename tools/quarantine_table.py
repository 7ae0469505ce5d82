#!/usr/bin/env python3
"""Measures the accuracy of the corruption quarantine: real RTSP with lost packets, each picture compared with a clean
decode.

usage: quarantine_table.py [--decode nvdec] [--whole] [--rates 0.1,0.5,1,2,5] CLIP…   (H.264 or H.265 in MP4)

A picture is damaged if its luma has less than 30 dB of PSNR against the same picture decoded without loss, touched if
it differs at all, and sound if it is identical. "flags" is what FFmpeg's own marks, each up to the next key frame,
would have withheld alone."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
from rtp_clip import CLOCK, Clip

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from streamd.errors import SourceError
from streamd.sources.av import AvStreamSettings
from streamd.sources.av_source import AvSource
from streamd.types import Frame
from tests.lossy_camera import Lose, by_chance, camera, luma, luma_by_stamp, whole_pictures

VISIBLE_DB = 30.0
SPEED = 3.0
"""Times real time: more, and large pictures would be lost in the kernel's UDP buffers."""


def until_it_breaks(source: AvSource) -> Iterator[Frame]:
    """All frames of a camera that ends."""
    try:
        yield from source.frames()
    except SourceError:
        return


class Row:
    """Counts of one run."""

    def __init__(self) -> None:
        self.frames = self.lost = 0
        self.damaged, self.touched, self.sound = [0, 0, 0], [0, 0, 0], [0, 0, 0]
        """Number of pictures, how many were withheld, and how many FFmpeg's flags alone would have withheld."""

    def add(self, other: Row) -> None:
        """Sums."""
        self.frames, self.lost = self.frames + other.frames, self.lost + other.lost
        for mine, its in ((self.damaged, other.damaged), (self.touched, other.touched), (self.sound, other.sound)):
            mine[:] = [a + b for a, b in zip(mine, its, strict=True)]

    def text(self) -> str:
        """Cells of a table."""
        (d, dw, df), (t, tw, tf), (s, sw, sf) = self.damaged, self.touched, self.sound
        return f"{self.lost} | {self.frames} | {d} | {dw} | {df} | {t} | {tw} | {tf} | {s} | {sw} | {sf}"


def measure(
    path: Path, truth: dict[int, Any], count: int, *, lose: Lose, transport: str, decode: Literal["software", "nvdec"]
) -> Row:
    """One run."""
    row, by_flags = Row(), False
    with camera(path, count=count, lose=lose, speed=SPEED) as cam:
        first = cam.pictures[0].stamp
        settings = {"transport": transport, "decode": decode, "read_timeout_s": 3}
        source = AvSource(AvStreamSettings(id="cam", url=cam.url, **settings))
        source.open()
        for frame in until_it_breaks(source):
            native = frame.picture.video_frame()
            by_flags = native.is_corrupt or (by_flags and not native.key_frame)
            if frame.pts_ns is None:
                continue
            wanted = truth.get(round(frame.pts_ns * CLOCK / 1e9) + first)
            if wanted is None:
                continue
            error = float(np.mean((luma(native).astype(np.float32) - wanted) ** 2))
            visible = error > 0 and 10 * np.log10(255**2 / error) < VISIBLE_DB
            cell = row.damaged if visible else row.touched if error > 0 else row.sound
            cell[0] += 1
            cell[1] += frame.quarantined
            cell[2] += by_flags
            row.frames += 1
        row.lost = source.lost
    return row


def main() -> int:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--decode", choices=("software", "nvdec"), default="software")
    parser.add_argument("--rates", default="0,0.1,0.5,1,2,5", help="percent of packets lost")
    parser.add_argument("--transports", default="tcp,udp")
    parser.add_argument("--frames", type=int, default=300, help="of each clip")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each")
    parser.add_argument("--whole", action="store_true", help="lose whole pictures, as cameras do if TCP stalls")
    parser.add_argument("clips", nargs="+", type=Path)
    args = parser.parse_args()
    kinds = " | ".join(f"{kind} | withheld | flags" for kind in ("damaged", "touched", "sound"))
    print(f"| clip | transport | loss % | packets lost | pictures | {kinds} |\n|{'---|' * 14}")
    for path in args.clips:
        truth, codec = luma_by_stamp(path, args.frames), Clip(path).codec
        for transport in args.transports.split(","):
            for rate in args.rates.split(","):
                total = Row()
                for seed in range(1, args.seeds + 1 if float(rate) else 2):
                    lose = (whole_pictures if args.whole else by_chance)(float(rate) / 100, seed)
                    total.add(measure(path, truth, args.frames, lose=lose, transport=transport, decode=args.decode))
                print(f"| {path.stem} ({codec}) | {transport} | {rate} | {total.text()} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
