"""The one file that training reads: small WebP pictures, their labels, where they came from. A NumPy .npz."""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from demo_model import SIZE
from demo_model.boxes import Array, average_precision
from demo_model.labels import Observer, calibrated, merge, read_labels, reliability

SIDE = 512
"""Longest side of a stored picture."""
FULL = (0, 1, 2, 3, 4, 5)
FOLDERS: dict[str, tuple[int, ...]] = {
    "train_coco": FULL,
    "coco_calib128": FULL,
    "train_voc5": (0, 2, 4),
    "train_pennfudan": (0,),
    "unlabelled_camvid": (),
}
"""Folders of images by name, and which of our classes their labels hold."""
FULL_SOURCES = tuple(name for name, known in FOLDERS.items() if known == FULL)
CALIBRATION = {"coco_calib128": 128, "train_voc5": 64, "unlabelled_camvid": 64}
"""Pictures by folder that the bundled INT8 model is calibrated with. Streets make half of them: with COCO's alone, its
outputs on clips are nearly twice as far from the float model's."""
LEAST = 0.1
"""Teachers' boxes below this score are not worth storing."""


@dataclass
class Picture:
    """One picture on its way into the pack."""

    name: str
    source: str
    known: tuple[int, ...]
    pixels: Any
    """(H, W, 3) uint8 BGR."""
    labels: Path | None


def _frames(path: Path, every: float) -> Iterator[Any]:
    """Frames of a clip, one every so many seconds, without those that look like the last one kept."""
    import av

    kept: Any = None
    due = 0.0
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            at = float(frame.time or 0.0)
            if at < due:
                continue
            due = at + every
            pixels = frame.to_ndarray(format="bgr24")
            small = pixels[:: max(1, len(pixels) // 64), :: max(1, len(pixels[0]) // 64)].astype(np.float32)
            if kept is None or np.abs(small - kept).mean() > 4.0:
                kept = small
                yield pixels


def pictures(images: Path, clips: list[Path], every: float) -> Iterator[Picture]:
    """Everything to train on; a picture that is in two folders is taken once."""
    import cv2

    taken: set[str] = set()
    for folder, known in FOLDERS.items():
        files = sorted(p for p in (images / folder / "images").iterdir() if p.suffix.lower() in (".jpg", ".png"))
        if not files:
            raise SystemExit(f"{images / folder}: no images")
        for path in files:
            if folder in ("train_coco", "coco_calib128"):
                if path.stem in taken:
                    continue
                taken.add(path.stem)
            pixels = cv2.imread(str(path), cv2.IMREAD_COLOR)
            if pixels is None:
                raise SystemExit(f"{path}: cannot be read")
            labels = images / folder / "labels" / f"{path.stem}.txt" if known else None
            yield Picture(path.stem, folder, known, pixels, labels)
    for clip in clips:
        for i, pixels in enumerate(_frames(clip, every)):
            yield Picture(f"{clip.stem}-{i}", "clips", (), pixels, None)


def calibration(images: Path, out: Path, take: Mapping[str, int]) -> int:
    """Copies pictures to calibrate INT8 with, evenly spread over each folder. Returns how many.

    Args:
        images: folder that holds the image folders.
        out: folder to write; it must not exist.
        take: by folder, how many of its pictures, or all that it has.
    """
    out.mkdir(parents=True)
    count = 0
    for folder, most in take.items():
        files = sorted(p for p in (images / folder / "images").iterdir() if p.suffix.lower() in (".jpg", ".png"))
        taken = [files[i * len(files) // most] for i in range(most)] if most < len(files) else files
        for file in taken:
            shutil.copyfile(file, out / f"{folder}_{file.name}")
        count += len(taken)
    return count


def _fit(pixels: Any, side: int, *, grow: bool) -> Any:
    import cv2

    ratio = side / max(pixels.shape[:2])
    if ratio == 1 or (ratio > 1 and not grow):
        return pixels
    size = (max(1, round(pixels.shape[1] * ratio)), max(1, round(pixels.shape[0] * ratio)))
    return cv2.resize(pixels, size, interpolation=cv2.INTER_AREA if ratio < 1 else cv2.INTER_LINEAR)


def prepare(images: Path, clips: list[Path], teachers: list[Path], out: Path, *, every: float, quality: int) -> None:
    """Reads all pictures, asks the teachers, merges labels, writes the pack."""
    import cv2

    cv2.setNumThreads(1)
    observer = Observer(teachers)
    kept: list[Picture] = []
    encoded: list[bytes] = []
    sizes: list[tuple[int, int]] = []
    seen: list[Array] = []
    started = time.monotonic()
    for picture in pictures(images, clips, every):
        seen.append(observer(_fit(picture.pixels, SIZE, grow=True)[:, :, ::-1]))
        small = _fit(picture.pixels, SIDE, grow=False)
        encoded.append(cv2.imencode(".webp", small, [cv2.IMWRITE_WEBP_QUALITY, quality])[1].tobytes())
        sizes.append((small.shape[1], small.shape[0]))
        picture.pixels = None
        kept.append(picture)
        if len(kept) % 250 == 0:
            print(f"{len(kept)} pictures, {sum(map(len, encoded)) / 1e6:.1f} MB, {time.monotonic() - started:.0f} s")
            sys.stdout.flush()
    truth = [read_labels(p.labels) if p.labels else (np.zeros((0, 6)), np.zeros((0, 4))) for p in kept]
    whole = [i for i, p in enumerate(kept) if p.known == FULL]
    a, b = reliability([seen[i] for i in whole], [truth[i][0] for i in whole])
    ap = average_precision(
        [seen[i] for i in whole],
        [truth[i][0][:, [0, 1, 2, 3, 5]] for i in whole],
        6,
    )
    print(f"teachers on {len(whole)} labelled pictures: AP50 {np.round(ap, 3).tolist()}, mean {np.nanmean(ap):.3f}")
    print(f"their score s is right with chance σ({a:.3f}·logit(s) {b:+.3f})")
    rows, first = [], [0]
    for picture, (labelled, others), found in zip(kept, truth, seen, strict=True):
        if picture.known == FULL:
            merged = labelled.astype(np.float32)
        else:
            merged = merge(labelled, others, found, picture.known, LEAST)
            soft = merged[:, 4] < 1
            merged[soft, 4] = np.minimum(calibrated(merged[soft, 4], a, b), 0.99)
        rows.append(merged)
        first.append(first[-1] + len(merged))
    meta = {"sources": [p.source for p in kept], "names": [p.name for p in kept], "calibration": [a, b]}
    out.parent.mkdir(parents=True, exist_ok=True)
    np.savez(
        out,
        blob=np.frombuffer(b"".join(encoded), np.uint8),
        offsets=np.cumsum([0, *map(len, encoded)]),
        sizes=np.array(sizes, np.int32),
        rows=np.concatenate(rows).astype(np.float32),
        first=np.array(first, np.int64),
        meta=np.frombuffer(json.dumps(meta).encode(), np.uint8),
    )
    table = np.concatenate(rows)
    for c in range(6):
        mine = table[table[:, 5] == c]
        print(f"class {c}: {int((mine[:, 4] == 1).sum())} labelled, {mine[mine[:, 4] < 1, 4].sum():.0f} expected of "
              f"{int((mine[:, 4] < 1).sum())} seen by teachers")  # fmt: skip
    print(f"{out}: {len(kept)} pictures, {out.stat().st_size / 1e6:.1f} MB")


@dataclass(frozen=True)
class Pack:
    """The pack's content."""

    pixels: Any
    """(N, SIDE, SIDE, 3) uint8 RGB, each picture at the top left."""
    sizes: Array
    """(N, 2) width, height."""
    rows: list[Array]
    """For each picture (M, 6)."""
    sources: list[str]
    names: list[str]
    calibration: tuple[float, float]


def read(path: Path, count: int | None = None, threads: int = 8) -> Pack:
    """Reads the pack and decodes its pictures with OpenCV, else Pillow. `count`: only so many, evenly spread."""
    from concurrent.futures import ThreadPoolExecutor

    data = np.load(path)
    meta = json.loads(bytes(data["meta"]))
    blob, offsets, sizes, first, table = (data[k] for k in ("blob", "offsets", "sizes", "first", "rows"))
    chosen = np.arange(len(sizes)) if count is None else np.linspace(0, len(sizes) - 1, count).astype(int)
    pixels = np.full((len(chosen), SIDE, SIDE, 3), 114, np.uint8)

    def put(k: int) -> None:
        i = int(chosen[k])
        picture = _decode(blob[offsets[i] : offsets[i + 1]])
        pixels[k, : picture.shape[0], : picture.shape[1]] = picture

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(put, range(len(chosen))))
    return Pack(
        pixels,
        sizes[chosen],
        [table[first[i] : first[i + 1]] for i in chosen],
        [meta["sources"][i] for i in chosen],
        [meta["names"][i] for i in chosen],
        tuple(meta["calibration"]),
    )


def _decode(data: Any) -> Any:
    try:
        import cv2
    except ImportError:
        import io

        from PIL import Image

        return np.asarray(Image.open(io.BytesIO(data.tobytes())).convert("RGB"))
    picture: Any = cv2.imdecode(data, cv2.IMREAD_COLOR)
    return picture[:, :, ::-1]
