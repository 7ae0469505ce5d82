#!/usr/bin/env python3
"""Writes tests/heads/golden/*.npz: outputs of small random models, decoded by their own families.

usage: head_references.py [--only NAME …] [--out FOLDER] [--keep FOLDER]

Needs a separate environment with torch, ultralytics, transformers, onnx and onnxruntime. No weights are loaded:
random ones are rescaled, so that scores and boxes spread as a trained model's do. Ultralytics' models are exported to
ONNX by its own exporter and run by ONNX Runtime; of the others, the modules themselves are run.

Each file has the outputs (`out0`, …), their `names`, `metadata` (JSON), `input` and `source` (height, width each)
and `how` (letterbox or stretch), and of the reference `xyxy` in source pixels, `score`, `class_id` and, by task,
`keypoints`, `rotated` (cx, cy, w, h, angle) or `masks` (packed bits, in input pixels).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

GOLDEN = Path(__file__).resolve().parent.parent / "tests" / "heads" / "golden"
NAMES = {0: "ant", 1: "bee", 2: "cat"}
CONF, IOU = 0.25, 0.45
ULTRALYTICS = {
    "yolov10": "yolov10n.yaml", "yolo26": "yolo26n.yaml", "pose_yolo11": "yolo11n-pose.yaml",
    "pose_yolo26": "yolo26n-pose.yaml", "obb_yolo11": "yolo11n-obb.yaml", "obb_yolo26": "yolo26n-obb.yaml",
    "segment_yolo11": "yolo11n-seg.yaml", "segment_yolo26": "yolo26n-seg.yaml", "rtdetr_ultralytics": "rtdetr-l.yaml",
}  # fmt: skip
"""Model of each file, as Ultralytics names it."""
END_TO_END = {"yolov10", "yolo26", "pose_yolo26", "obb_yolo26", "segment_yolo26"}
"""Of these, the ones that are exported without NMS."""
TRANSFORMERS = {
    "detr_rtdetr": "RTDetr", "detr_rtdetr_v2": "RTDetrV2", "detr_dfine": "DFine", "detr_deimv2": "Deimv2",
    "rf_detr": "RfDetr",
}  # fmt: skip
"""Class of each file's model, without ForObjectDetection, in Hugging Face's transformers."""


def _wake(model: Any, size: int) -> None:
    """Sets the statistics of batch normalisation: otherwise, activations of random weights vanish."""
    import torch

    layers = [m for m in model.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
    for layer in layers:
        layer.momentum = 1.0
        layer.train()
    with torch.no_grad():
        model(torch.rand(4, 3, size, size))
    for layer in layers:
        layer.eval()


def _spread(convolution: Any, images: Any, model: Any, mean: float | None, deviation: float) -> None:
    """Rescales a last layer so that its outputs have this mean (None: as it is) and standard deviation."""
    import torch

    seen: list[Any] = []
    hook = convolution.register_forward_hook(lambda _module, _inputs, out: seen.append(out.detach()))
    with torch.no_grad():
        model(images)
        hook.remove()
        if not seen:
            return
        values = torch.cat([v.flatten() for v in seen])
        factor = deviation / max(float(values.std()), 1e-6)
        convolution.weight *= factor
        if mean is not None and convolution.bias is not None:
            convolution.bias.fill_(mean - factor * float(values.mean() - convolution.bias.mean()))


def _ultralytics(config: str, folder: Path, size: int, nms: bool | None) -> tuple[Any, Path]:
    """(model, ONNX file) of a random model with three classes; `nms` False: end to end, for models made for that."""
    import torch
    from ultralytics import RTDETR, YOLO

    torch.manual_seed(1)
    facade = (RTDETR if "rtdetr" in config else YOLO)(config)
    given = facade.model.args
    model = type(facade.model)(config, nc=len(NAMES), verbose=False).eval()
    model.args, model.names, model.task = given, NAMES, facade.task
    facade.model = model
    _wake(model, size)
    head = model.model[-1]
    images = torch.rand(1, 3, size, size)
    if "rtdetr" in config:
        for layer in (*head.dec_score_head, head.enc_score_head):
            _spread(layer, images, model, -2, 1.5)
    else:
        groups = [("cv2", None, 1.5), ("cv3", -1.5, 1.2), ("cv4", None, 1.0)]
        for name, mean, deviation in groups:
            for prefix in ("", "one2one_"):
                for branch in getattr(head, prefix + name, None) or ():
                    last = branch[-1] if hasattr(branch, "__getitem__") else branch
                    if hasattr(last, "weight"):
                        _spread(last, images, model, mean, deviation)
    model.pt_path = str(folder / "model.pt")
    facade.ckpt_path = model.pt_path
    return model, Path(facade.export(format="onnx", imgsz=size, simplify=False, opset=17, nms=nms))


def _run_onnx(path: Path, size: int) -> tuple[list[Any], list[str], dict[str, str]]:
    import onnxruntime as ort

    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    image = np.random.default_rng(3).random((1, 3, size, size), np.float32)
    outputs = session.run(None, {session.get_inputs()[0].name: image})
    metadata = session.get_modelmeta().custom_metadata_map
    kept = {k: metadata[k] for k in ("task", "names", "kpt_shape", "head", "end2end", "description") if k in metadata}
    return outputs, [o.name for o in session.get_outputs()], kept


def ultralytics_case(name: str, keep: Path | None) -> dict[str, Any]:
    """One file's arrays."""
    import torch
    from ultralytics.utils import nms, ops

    stretched = "rtdetr" in name
    size = 160 if stretched else 64
    source = (120, 200) if stretched else (50, 100)
    with tempfile.TemporaryDirectory() as folder:
        nms_free = False if name in END_TO_END else None
        _, path = _ultralytics(ULTRALYTICS[name], Path(folder), size, nms_free)
        outputs, names, metadata = _run_onnx(path, size)
        if keep is not None:
            shutil.copy(path, keep / f"{name}.onnx")
        path.unlink()
    rows = torch.from_numpy(outputs[0])
    found: dict[str, Any] = {}
    if stretched:
        box, score, label = rows[0].split((4, 1, 1), dim=-1)
        kept = score[:, 0] > CONF
        xyxy = ops.xywh2xyxy(box[kept]) * torch.tensor([source[1], source[0]] * 2)
        found = {"xyxy": xyxy, "score": score[kept, 0], "class_id": label[kept, 0]}
    else:
        task, final = metadata["task"], metadata.get("end2end", "False") == "True"
        (kept_rows,) = nms.non_max_suppression(
            rows, CONF, IOU, nc=len(NAMES), rotated=task == "obb", end2end=final, max_det=300
        )
        found = {"score": kept_rows[:, 4], "class_id": kept_rows[:, 5]}
        if task == "obb":
            box = ops.scale_boxes((size, size), kept_rows[:, :4].clone(), source, xywh=True)
            found["rotated"] = torch.cat([box, kept_rows[:, -1:]], dim=1)
        else:
            found["xyxy"] = ops.scale_boxes((size, size), kept_rows[:, :4].clone(), source)
        if task == "pose":
            points = kept_rows[:, 6:].view(len(kept_rows), 17, 3)
            found["keypoints"] = ops.scale_coords((size, size), points.clone(), source)
        if task == "segment":
            masks = ops.process_mask(
                torch.from_numpy(outputs[1][0]), kept_rows[:, 6:], kept_rows[:, :4], (size, size), upsample=True
            )
            found["masks"] = np.packbits(np.asarray(masks, np.uint8).reshape(len(masks), -1), axis=1)
    return _case(outputs, names, metadata, size, source, "stretch" if stretched else "letterbox", found)


def transformers_case(name: str) -> dict[str, Any]:
    """One file's arrays: the module's own logits and boxes, and its image processor's post-processing."""
    import torch
    import transformers

    family = TRANSFORMERS[name]
    size, source = (224 if name == "rf_detr" else 128), (90, 200)
    classes = 91 if name == "rf_detr" else len(NAMES)
    torch.manual_seed(2)
    config = getattr(transformers, f"{family}Config")(num_queries=60)
    config.num_labels = classes
    config.num_denoising = 0
    model = getattr(transformers, f"{family}ForObjectDetection")(config).eval()
    images = torch.rand(1, 3, size, size)
    for layer_name, layer in model.named_modules():
        if "class_embed" in layer_name and hasattr(layer, "weight"):
            _spread(layer, images, model, -5 if classes > len(NAMES) else -3, 1.5)
    with torch.no_grad():
        out = model(images)
    processor = transformers.RTDetrImageProcessor()
    (got,) = processor.post_process_object_detection(out, threshold=CONF, target_sizes=[source])
    outputs, names = [out.logits.numpy(), out.pred_boxes.numpy()], ["logits", "pred_boxes"]
    if name == "rf_detr":
        outputs, names = outputs[::-1], ["dets", "labels"]
    found = {"xyxy": got["boxes"], "score": got["scores"], "class_id": got["labels"]}
    return _case(outputs, names, {}, size, source, "stretch", found)


def _case(
    outputs: list[Any], names: list[str], metadata: dict[str, str], size: int, source: tuple[int, int], how: str,
    found: dict[str, Any],
) -> dict[str, Any]:  # fmt: skip
    arrays = {f"out{i}": np.asarray(o, np.float32) for i, o in enumerate(outputs)}
    reference = {k: np.asarray(v) if k == "masks" else np.asarray(v, np.float32) for k, v in found.items()}
    return {
        **arrays, **reference, "names": np.array(names), "metadata": np.array(json.dumps(metadata)),
        "input": np.array([size, size]), "source": np.array(source), "how": np.array(how),
    }  # fmt: skip


def main() -> int:
    """Writes the files asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[*ULTRALYTICS, *TRANSFORMERS], metavar="NAME")
    parser.add_argument("--out", type=Path, default=GOLDEN)
    parser.add_argument("--keep", type=Path, help="folder for the exported ONNX files")
    args = parser.parse_args()
    os.environ |= {"YOLO_AUTOINSTALL": "0", "YOLO_OFFLINE": "1", "HF_HUB_OFFLINE": "1"}
    args.out.mkdir(parents=True, exist_ok=True)
    if args.keep is not None:
        args.keep.mkdir(parents=True, exist_ok=True)
    for name in args.only:
        case = ultralytics_case(name, args.keep) if name in ULTRALYTICS else transformers_case(name)
        path = args.out / f"{name}.npz"
        np.savez_compressed(path, **case)
        print(f"{name}: {len(case['score'])} boxes, {path.stat().st_size} bytes, {json.loads(str(case['metadata']))}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
