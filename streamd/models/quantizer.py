"""One model on its way to INT8: calibration, ranges, rounding, fine-tuning, and candidates to judge."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Any

from streamd.engine import ModelSettings, open_backend
from streamd.engine.model import model_file
from streamd.engine.onnx.reader import read_onnx
from streamd.engine.openvino import OpenVinoSettings
from streamd.engine.sidecar import Sidecar, read_sidecar, write_sidecar
from streamd.errors import ConfigError, ModelError
from streamd.heads import DetectSettings
from streamd.heads.select import check_decoded, declared, open_head
from streamd.models import cache
from streamd.models.calibrate import METHODS, Histogram, Observer, Peaks, observe, thresholds
from streamd.models.centre import RANGES, Centred, centred
from streamd.models.finetune.operators import vendor as torch_package
from streamd.models.finetune.parameters import Start, Tuned
from streamd.models.finetune.train import PICTURES, Input, finetuned
from streamd.models.gate import Gate, Verdict
from streamd.models.graph import (
    check_writable,
    chosen,
    fix_size_input,
    has_size_input,
    prepare,
    with_constants,
    write_whole,
)
from streamd.models.pictures import KEPT_FRAMES, Feeder, Pictures, refuse_shared
from streamd.models.qdq import Sites, find_sites, quantized
from streamd.models.request import Request
from streamd.models.sensitivity import Noise, dominant
from streamd.models.tune import PICTURES as ROUNDED_ON
from streamd.models.tune import ROUNDINGS, safe_weights, tuned
from streamd.types import Float32Array, Frame, ModelSpec

AGREEMENT_PICTURES = 128
NOISE_PICTURES = 8
"""Calibration pictures on which the noise of layers is measured."""
SEARCH_PICTURES = 64
"""Pictures on which layers to keep in float are searched."""
Report = Callable[[str, int, int], None]
"""Called with (description, done, total); total 0 if unknown."""


def silent(_what: str, _done: int, _total: int) -> None:
    pass


def input_spec(model: str) -> ModelSpec:
    """The model's input as the daemon sees it, including its sidecar."""
    backend = open_backend(OpenVinoSettings(), ModelSettings(path=model))
    try:
        return backend.spec
    finally:
        backend.close()


def class_count(spec: ModelSpec, head: str | None) -> int | None:
    """How many classes the model tells apart; None if its head is not known."""
    try:
        return open_head(declared(head, spec), spec, DetectSettings()).classes
    except ConfigError:
        return None


class Quantizer:
    """One model with its calibration, from which any number of candidates can be built.

    Args:
        request: what to do.
        report: progress callback.

    Raises:
        ConfigError: an invalid option or folder, or a missing package.
        ModelError: the model cannot be used.
        SourceError: a video or stream cannot be read.
    """

    def __init__(self, request: Request, report: Report = silent) -> None:
        self.request, self._report = request, report
        if request.method not in METHODS:
            raise ConfigError(f"--method {request.method}: expected one of {', '.join(METHODS)}")
        if request.rounding not in ROUNDINGS:
            raise ConfigError(f"--rounding {request.rounding}: expected one of {', '.join(ROUNDINGS)}")
        if request.ranges not in RANGES:
            raise ConfigError(f"--ranges {request.ranges}: expected one of {', '.join(RANGES)}")
        if request.finetune:
            torch_package()  # rather an error now than after calibration
        self.source = model_file(request.model)
        if request.out.exists() and self.source.exists() and request.out.samefile(self.source):
            raise ConfigError(f"--out {request.out}: is the float model itself; give another name")
        check_writable(request.out)
        self.model = prepare(self.source)
        if has_size_input(self.model):
            fix_size_input(self.model, input_spec(str(self.source)))
        self.sites: Sites = find_sites(self.model)
        if not self.sites.layers:
            raise ModelError(
                f"model {self.source}: nothing to quantize: no convolution with constant weights before its outputs"
            )
        self.layer_names = [layer.name for layer in self.sites.layers]
        self.float_layers = chosen(request.float_layers, self.layer_names, "--float-layers")
        self.spec = input_spec(str(self.source))
        self._check_head()
        self.feeder = Feeder(self.spec)
        limit = request.batch * request.batches
        self.pictures = Pictures(request.images, limit, request.every, keep_back=request.eval_images is None)
        if request.eval_images is not None:
            judged = Pictures(request.eval_images, 1 << 20, request.every)
            refuse_shared(self.pictures, judged, "--images", "--eval-images")
        self.cached = False
        self.seen = 0
        self._frames: list[tuple[str, Frame]] = []
        started = time.monotonic()
        self._histograms, peaks, self.pictures_sha256 = self._calibrate()
        self.thresholds = thresholds(self._histograms, self.sites.sources, request.method)
        self._moved: Centred | None = None
        if request.ranges == "centred":
            moved = self._moved = centred(
                self.model, self.sites, self._histograms, self.thresholds, peaks,
                search=request.method == "mse", float_layers=self.float_layers,
            )  # fmt: skip
            self.model, self.sites, self.thresholds, peaks = moved.model, moved.sites, moved.thresholds, moved.peaks
        self.weights = safe_weights(self.model, self.sites, self.thresholds, peaks)
        if self._moved is not None:
            self.weights = self._moved.corrected(self.weights)
        if request.rounding == "layer":
            self.weights = tuned(
                self.model, self.sites, self.thresholds, self.weights, peaks, self.inputs, report, self.float_layers
            )
        self.standing_out: list[str] = []
        """Layers that stay in float for their noise."""
        if request.float_share > 0:
            noise = Noise(self.model, self.sites, self.thresholds, list(self.inputs(NOISE_PICTURES)), self.weights)
            self.standing_out = dominant(noise, report, always=self.float_layers, share=request.float_share)
            self.float_layers += self.standing_out
        self.calibration_seconds = time.monotonic() - started
        if self._moved is not None:
            self.model = self._moved.in_float(self.model, self.float_layers)
        self.rounded = self.thresholds, self.weights
        """Before fine-tuning."""
        self.finetuning: Tuned | None = None
        self._written = self.model
        if request.finetune:
            self._finetune(peaks)

    def _finetune(self, peaks: Peaks) -> None:
        gain, offset = self.spec.normalization()
        padding = tuple(float(v) for v in self.spec.pad_value * gain + offset)
        made = Input(padding, self.spec.layout == "NCHW", self.feeder.fixed_batch)
        start = Start(self.model, self.sites, self.thresholds, self.weights, peaks, self.float_layers)
        tuned = self.finetuning = finetuned(
            start, self.inputs(PICTURES), made, self._report, classes=class_count(self.spec, self.request.head),
            steps=self.request.finetune, residuals=self.request.residuals,
        )  # fmt: skip
        self.thresholds, self.weights = tuned.thresholds, tuned.weights
        self._written = with_constants(self.model, tuned.constants)

    def _check_head(self) -> None:
        """Rejects, before the long work, undecoded rows in the shape of decoded ones: they cannot be measured."""
        check_decoded(self.request.head, self.spec, ends_in_sigmoid=read_onnx(self.source).ends_in_sigmoid)

    def _calibrate(self) -> tuple[dict[str, Histogram], Peaks, str]:
        inputs = list(dict.fromkeys(layer.input for layer in self.sites.layers))
        pictures_sha = self.pictures.sha256()
        path, key = None, ""
        if pictures_sha is not None and self.request.use_cache:
            key = cache.key_of(self.spec, pictures_sha, self.sites.watched)
            path = self.request.cache or cache.default_folder() / f"{key[:32]}.json"
            found = cache.load(path, key)
            if found is not None and set(found[0]) >= set(self.sites.watched) and set(found[1]) >= set(inputs):
                self.cached = True
                return *found, pictures_sha
        observer = Observer(self.model, list(dict.fromkeys([*self.sites.watched, *inputs])))
        total = len(self.pictures.images) or self.pictures.limit

        def batches() -> Iterable[Float32Array]:
            for batch in self.feeder.batches(self._watch(), self.request.batch, self.pictures.unreadable):
                yield batch
                self.seen += len(batch)
                self._report("calibrate", min(self.seen, total), total)

        histograms, peaks = observe(observer, batches(), self.sites.watched, inputs)
        if not self.seen:
            reason = self.pictures.unreadable[0] if self.pictures.unreadable else "it ended before the first frame"
            raise ConfigError(f"--images {self.request.images}: no image could be read: {reason}")
        if pictures_sha is None:
            import hashlib
            import json

            seen = json.dumps([h.as_json() for h in histograms.values()])
            pictures_sha = hashlib.sha256(seen.encode()).hexdigest()
        elif path is not None and not self.pictures.unreadable:
            cache.save(path, key, self.spec, pictures_sha, histograms, peaks)
        return histograms, peaks, pictures_sha

    def frames(self) -> Iterable[tuple[str, Frame]]:
        """Pictures for measuring agreement: those of --eval-images, else those kept back from calibration."""
        if self.request.eval_images is not None:
            return Pictures(self.request.eval_images, AGREEMENT_PICTURES, self.request.every).frames()
        return self.pictures.judged(AGREEMENT_PICTURES)

    def _watch(self) -> Iterable[tuple[str, Frame]]:
        """The calibration pictures; some of a stream's are remembered, for it cannot be read again."""
        step = max(1, self.pictures.limit // KEPT_FRAMES)
        for i, (name, frame) in enumerate(self.pictures.frames()):
            if self.pictures.live and i % step == 0:
                self._frames.append((name, frame))
            yield name, frame

    def inputs(self, count: int) -> Iterable[Float32Array]:
        """Network inputs of at most `count` of the calibration pictures, one picture (or the model's batch) each."""
        frames: Iterable[tuple[str, Frame]] = self._frames[:count]
        if not self.pictures.live:
            few = Pictures(self.request.images, self.pictures.limit, self.request.every, self.pictures.keep_back)
            few.images = few.images[:: max(1, -(-len(few.images) // count))]
            frames = itertools.islice(few.frames(), count)
        return self.feeder.batches(frames, 1, [])

    def searched(self) -> Iterable[tuple[str, Frame]]:
        """Pictures for choosing float layers: none that the gate judges on and, if there are enough, none that weights
        were rounded on."""
        if self.pictures.live:
            return self._frames
        few = Pictures(self.request.images, self.pictures.limit, self.request.every, self.pictures.keep_back)
        if not few.images:
            return itertools.islice(few.frames(), 0, 2 * SEARCH_PICTURES, 2)
        used = set(few.images[:: max(1, -(-len(few.images) // ROUNDED_ON))])
        rest = [path for path in few.images if path not in used]
        few.images = (rest if len(rest) >= SEARCH_PICTURES // 2 else few.images)[:SEARCH_PICTURES]
        return few.frames()

    def candidate(self, float_layers: Collection[str]) -> bytes:
        """The quantized model as file content: byte-identical for identical inputs."""
        model = self._written if self._moved is None else self._moved.in_float(self._written, float_layers)
        made = quantized(
            model, self.sites, self.thresholds, float_layers=float_layers, residuals=self.request.residuals,
            compact=self.request.compact, weights=self.weights,
        )  # fmt: skip
        content: bytes = made.SerializeToString(deterministic=True)
        return content

    def sidecar(self, **more: Any) -> Sidecar:
        """The float model's sidecar, updated for the INT8 model."""
        found, kind = read_sidecar(self.source), self.request.head
        if kind is not None and (found.head or {}).get("kind") != kind:
            more["head"] = {"kind": kind}
        return found.model_copy(update={"sha256": None, "provenance": None} | more)

    def noise(self, pictures: int) -> Noise:
        """What its layers' noise is measured with, on so many calibration pictures."""
        limits, weights = self.rounded
        return Noise(self.model, self.sites, limits, list(self.inputs(pictures)), weights)

    def measure(self, gate: Gate, float_layers: Collection[str], folder: Path) -> Verdict:
        """Judges a candidate, which is written to `folder` for the purpose."""
        path = folder / "candidate.onnx"
        write_whole(path, self.candidate(float_layers))
        write_sidecar(path, self.sidecar())
        return gate.judge(path, lambda done, total: self._report("measure int8", done, total))
