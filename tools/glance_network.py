"""What the network finds in every frame of a clip, computed once."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from glance_day import frames_of

from streamd.config import DetectorSettings
from streamd.engine import BatchSettings, open_backend
from streamd.engine.openvino import OpenVinoSettings
from streamd.heads import DetectSettings
from streamd.heads.detector import open_detector
from streamd.types import ModelInfo

NOISE = 2.0
"""Standard deviation of noise, in levels."""
Boxes = tuple[npt.NDArray[np.float32], npt.NDArray[np.float32], npt.NDArray[np.int32]]


class Network:
    """Boxes of every frame of a clip, computed once.

    Args:
        model: path or `builtin:NAME`.
        cache: folder that keeps them; None to compute them each time.
    """

    def __init__(self, model: str, cache: Path | None) -> None:
        self._model, self._cache = model, cache
        settings = DetectorSettings(path=model)
        self.backend = open_backend(OpenVinoSettings(), settings, batch=BatchSettings(max=1), live=False)
        self.detect = DetectSettings()
        low = self.detect.model_copy(update={"conf": 0.1})
        self._detector = open_detector(self.backend.spec, settings.head, low)
        self.backend.start(self._detector.plan)
        self.info: ModelInfo = self._detector.model

    def boxes(self, clip: Path, seed: int | None = None) -> list[Boxes]:
        """Of each frame: corners (N, 4), scores (N,), classes (N,). With noise in the picture, if there is a seed."""
        salt = self.info.sha256.encode() + (b"" if seed is None else f"noise {NOISE} {seed}".encode())
        digest = hashlib.sha256(clip.read_bytes() + salt).hexdigest()[:16]
        kept = self._cache / f"{digest}.npz" if self._cache is not None else None
        if kept is not None and kept.is_file():
            with np.load(kept) as data:
                rows, counts = data["rows"], data["counts"]
            parts = np.split(rows, np.cumsum(counts)[:-1])
            return [(p[:, :4].copy(), p[:, 4].copy(), p[:, 5].astype(np.int32)) for p in parts]
        out: list[Boxes] = []
        slot: Any = self.backend.slots[0]
        rng = np.random.default_rng(seed)
        for frame in frames_of(clip):
            (letterbox,) = self.backend.preprocess(slot, [frame])
            clean = slot.pixels.copy()
            if seed is not None:
                noise = rng.normal(0, NOISE, clean.shape[:3]).astype(np.float32)[..., None]
                slot.pixels[:] = np.clip(clean + noise + 0.5, 0, 255).astype(np.uint8)
            self.backend.infer(slot)
            xyxy, score, class_id = self._detector.postprocess(self.backend.collect(slot), 0, letterbox)
            slot.pixels[:] = clean  # of the padding, only once written
            out.append((xyxy.copy(), score.copy(), class_id.copy()))
        if kept is not None and out:
            kept.parent.mkdir(parents=True, exist_ok=True)
            rows = np.concatenate([np.column_stack(each) for each in out]).astype(np.float32)
            np.savez_compressed(kept, rows=rows, counts=[len(each[1]) for each in out])
        return out
