"""How the bundled detector is trained: labels merge, a step learns, and what is exported decodes alike."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from streamd.engine import ModelSettings
from streamd.heads import DetectSettings
from streamd.heads.select import open_head
from streamd.models.evaluate import Detector
from tests.conftest import shared

TOOLS = str(Path(__file__).resolve().parents[2] / "tools")


@pytest.fixture(autouse=True)
def _tools(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(TOOLS)


PERSON, BICYCLE, CAR, BUS, TRUCK = 0, 1, 2, 4, 5
NOTHING = np.zeros((0, 6), np.float32)


def rows(*found: tuple[float, float, float, float, float, int]) -> Any:
    return np.array(found, np.float32).reshape(-1, 6)


def merge(labelled: Any, seen: Any, known: tuple[int, ...], others: Any = None) -> list[tuple[float, int]]:
    from demo_model.labels import merge as merged

    boxes = np.zeros((0, 4), np.float32) if others is None else others
    return [(round(float(r[4]), 2), int(r[5])) for r in merged(labelled, boxes, seen, known, 0.1)]


def test_teachers_add_what_labels_lack_and_repeat_nothing() -> None:
    labelled = rows((0.1, 0.1, 0.4, 0.8, 1, PERSON), (0.5, 0.5, 0.9, 0.9, 1, CAR))
    seen = rows(
        (0.1, 0.1, 0.41, 0.8, 0.9, PERSON),  # labelled
        (0.1, 0.5, 0.4, 0.9, 0.8, BICYCLE),  # the person's own: another kind of thing
        (0.51, 0.5, 0.9, 0.9, 0.45, TRUCK),  # the labelled car, less surely a truck
        (0.7, 0.1, 0.8, 0.3, 0.3, PERSON),  # missed by the labels
        (0.0, 0.0, 0.1, 0.1, 0.05, CAR),  # too unsure
    )
    assert merge(labelled, seen, (PERSON, CAR, BUS)) == [(1, PERSON), (1, CAR), (0.8, BICYCLE), (0.3, PERSON)]


def test_a_lorry_labelled_as_a_car_becomes_a_truck_only_where_trucks_are_not_labelled() -> None:
    labelled, seen = rows((0.5, 0.5, 0.9, 0.9, 1, CAR)), rows((0.51, 0.5, 0.9, 0.9, 0.7, TRUCK))
    assert merge(labelled, seen, (PERSON, CAR, BUS)) == [(1, TRUCK)]
    assert merge(labelled, seen, (PERSON, CAR, BUS, TRUCK)) == [(1, CAR)]


def test_a_labelled_train_is_no_bus_and_one_thing_has_one_class() -> None:
    train = np.array([[0.0, 0.3, 1.0, 0.7]], np.float32)
    assert merge(NOTHING, rows((0, 0.3, 1, 0.7, 0.6, BUS)), (), train) == []
    assert merge(NOTHING, rows((0, 0.3, 1, 0.7, 0.6, BUS), (0, 0.3, 1, 0.69, 0.5, TRUCK)), ()) == [(0.6, BUS)]


def test_yolo_text_is_split_into_our_classes_and_the_rest(tmp_path: Path) -> None:
    from demo_model.labels import read_labels

    (tmp_path / "a.txt").write_text("7 0.5 0.5 0.2 0.4\n6 0.5 0.5 1 1\n")
    ours, others = read_labels(tmp_path / "a.txt")
    assert ours.ravel() == pytest.approx([0.4, 0.3, 0.6, 0.7, 1, TRUCK])
    assert others.tolist() == [[0, 0, 1, 1]]


def test_views_fuse_and_what_few_see_scores_less() -> None:
    from demo_model.boxes import fuse

    boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 11], [50, 50, 60, 60]], np.float32)
    found = fuse(boxes, np.array([0.8, 0.8, 0.8]), np.array([0, 0, 0]), np.array([0, 1, 0]), 2)
    assert found[:, 4].tolist() == pytest.approx([0.8, 0.4])
    assert found[0, :4].tolist() == pytest.approx([0, 0, 10, 10.5])


def test_scores_become_chances() -> None:
    from demo_model.labels import calibrated, reliability

    random = np.random.default_rng(0)
    score = random.uniform(0.05, 0.95, 3000)
    right = random.uniform(size=3000) < np.sqrt(score)  # this teacher is too modest
    seen = [rows((0, 0, 1, 1, float(s), CAR)) for s in score]
    truth = [rows((0, 0, 1, 1, 1, CAR)) if r else NOTHING for r in right]
    assert calibrated(np.array([0.25, 0.64]), *reliability(seen, truth)) == pytest.approx([0.5, 0.8], abs=0.05)


def test_average_precision() -> None:
    from demo_model.boxes import average_precision

    truth = [np.array([[0, 0, 10, 10, 0], [20, 20, 30, 30, 0]], np.float32)]
    found = [rows((0, 0, 10, 10, 0.9, 0), (40, 40, 50, 50, 0.8, 0), (20, 20, 30, 30, 0.7, 0))]
    assert average_precision(found, truth, 2).tolist() == pytest.approx([(51 + 50 * 2 / 3) / 101, np.nan], nan_ok=True)


@pytest.fixture
def pack(tmp_path: Path) -> Any:
    """Four pictures of bright rectangles on noise, as the pack holds them."""
    pytest.importorskip("torch", reason="training needs PyTorch")
    from demo_model.pack import SIDE, Pack

    random = np.random.default_rng(1)
    pixels = random.integers(0, 60, (4, SIDE, SIDE, 3), np.uint8)
    labels = []
    for i, number in enumerate((PERSON, CAR, BUS, TRUCK)):
        w, h = random.integers(60, 200, 2)
        x, y = random.integers(0, SIDE - 200, 2)
        pixels[i, y : y + h, x : x + w] = np.roll([250, 40 * i, 90], i)
        labels.append(rows((x / SIDE, y / SIDE, (x + w) / SIDE, (y + h) / SIDE, 1, number)))
    sizes = np.full((4, 2), SIDE, np.int32)
    return Pack(pixels, sizes, labels, ["train_coco"] * 4, list("abcd"), (1.0, 0.0))


def test_labels_follow_the_pixels(pack: Any) -> None:
    import torch
    from demo_model.augment import Augment, Store, Strength

    augment = Augment(Store(pack, "cpu"))
    plain = Strength(hue=0, saturation=0, brightness=0, contrast=0, grey=0, mixup=0, mosaic=0.5)
    pictures, found = augment(16, plain)
    assert pictures.shape == (16, 3, 416, 416)
    checked = 0
    for picture, table in zip(pictures, found, strict=True):
        inside = torch.zeros(416, 416, dtype=torch.bool)
        for x1, y1, x2, y2, score, _ in table.tolist():
            if score > 0:
                area = picture[:, int(y1 + 3) : int(y2 - 2), int(x1 + 3) : int(x2 - 2)]
                assert area.numel() == 0 or area.amax(0).min() > 0.9
                inside[max(0, int(y1 - 2)) : int(y2 + 3), max(0, int(x1 - 2)) : int(x2 + 3)] = True
                checked += 1
        hidden = (picture.amax(0) > 0.9) & ~inside
        # What is bright outside every box is a thing less than a quarter of which is left.
        assert hidden.float().mean() < 0.08
    assert checked > 10


def test_cells_give_back_the_boxes_they_were_given() -> None:
    torch = pytest.importorskip("torch", reason="training needs PyTorch")
    from demo_model.loss import assign

    boxes = torch.tensor([[[10.0, 20, 30, 60], [100, 100, 400, 400], [200, 200, 260, 260], [200, 200, 262, 260]]])
    scores = torch.zeros(1, 4, 6)
    scores[0, 0, PERSON], scores[0, 1, BUS], scores[0, 2, CAR], scores[0, 3, TRUCK] = 1, 0.6, 1, 0.9
    targets = assign(boxes, scores, torch.tensor([[True, False, True, False]]))
    held = targets.scores[0].amax(-1)
    found = {tuple(b) for b in targets.boxes[0][held > 0].tolist()}
    assert found == {tuple(b) for b in boxes[0, :3].tolist()}  # the teacher's truck gives way to the drawn car
    assert sorted({round(float(v), 2) for v in held.unique()}) == [0, 0.6, 1]


def test_training_learns_and_streamd_decodes_what_it_exports(pack: Any, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="training needs PyTorch")
    from demo_model.augment import Strength
    from demo_model.export import export, load
    from demo_model.net import Grid, flat
    from demo_model.plan import Plan, decoded
    from demo_model.train import Trainer

    plan = Plan(Path("unused"), tmp_path, device="cpu", batch=4, compile=False, width=0.125, ema=0.5, steps=1)
    trainer = Trainer(plan, 0.0, pack)
    trainer.augment.use(Strength.mild())
    losses = []
    for _ in range(20):
        trainer.advance(2e-3)
        losses.append(sum(trainer.parts(1)))
    assert sum(losses[-3:]) < 0.75 * sum(losses[:3])
    weights = trainer.save()
    again = dataclasses.replace(plan, resume=tmp_path / "demo.pt")
    assert Trainer(again, 0.0, pack).step == 20

    export(weights, tmp_path / "demo.onnx")
    with torch.no_grad():
        heads = load(weights)(trainer.augment.plain(torch.arange(4))[0])
    logits = flat(heads)
    boxes = Grid("cpu").boxes(logits).numpy()
    score = (logits[..., 4:5].sigmoid() * logits[..., 5:].sigmoid()).numpy()
    conf = float(np.quantile(score[0].max(-1), 0.95))  # so early, no score is high
    detect = DetectSettings(conf=conf, multi_label=True)
    with Detector(ModelSettings(path=str(tmp_path / "demo.onnx")), detect, {"kind": "openvino"}) as detector:
        assert detector.labels == ("person", "bicycle", "car", "motorcycle", "bus", "truck")
        head = open_head(None, detector.spec, detect)
    found = head.candidates(tuple(np.ascontiguousarray(h.numpy()) for h in heads), 0)
    cell, number = np.nonzero(score[0] >= conf)
    ours = np.column_stack([boxes[0][cell], score[0][cell, number], number])
    theirs = np.column_stack([found.xyxy, found.score, found.class_id])
    assert len(ours) == len(theirs) > 100
    near = np.isclose(ours[:, None], theirs[None], rtol=1e-3, atol=1e-2).all(-1)
    near &= np.isclose(ours[:, None, 4], theirs[None, :, 4], rtol=1e-3, atol=1e-6)
    assert near.any(0).all()
    assert near.any(1).all()
    assert decoded(torch.from_numpy(boxes), torch.from_numpy(score))


def test_a_teachers_cells_are_the_students_where_it_can_give_their_boxes() -> None:
    torch = pytest.importorskip("torch", reason="training needs PyTorch")
    from demo_model.distill import cell_targets
    from demo_model.net import Grid
    from demo_model.teacher import Seen

    boxes, scores = torch.zeros(1, 3598, 4), torch.zeros(1, 3598, 6)

    def say(cell: int, box: tuple[float, ...], number: int, score: float) -> None:
        boxes[0, cell] = torch.tensor(box)
        scores[0, cell, number] = score

    say(53, (0, 0, 24, 24), PERSON, 0.9)  # stride 8, second row, second column: its centre is that of the box
    say(60, (200, 200, 230, 230), PERSON, 0.9)  # far from its box
    say(70, (100, 0, 250, 30), BUS, 0.9)  # wider than a cell of stride 8 can say
    say(3549 + 8, (64, 64, 192, 192), TRUCK, 0.8)  # stride 64: of its four cells of stride 32 the one near the centre
    targets = cell_targets(Seen(boxes, scores, scores, ()), Grid("cpu"), 1.0, 0.0)
    held = targets.scores[0].amax(-1).nonzero().flatten().tolist()
    assert held == [53, 52**2 + 26**2 + 13 * 3 + 3]
    assert targets.scores[0, held[1], TRUCK].item() == pytest.approx(0.8, abs=1e-4)
    assert targets.boxes[0, held[1]].tolist() == [64, 64, 192, 192]


def test_a_warm_start_says_what_the_exported_model_says(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="training needs PyTorch")
    from demo_model.export import export
    from demo_model.net import Detector
    from demo_model.warm import warm_start

    torch.manual_seed(3)
    taught, fresh = Detector(0.125).eval(), Detector(0.125)
    for module in taught.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            for value, low, high in ((module.weight, 0.5, 2), (module.bias, -1, 1), (module.running_mean, -0.2, 0.2)):
                torch.nn.init.uniform_(value, low, high)
    torch.save({"state": taught.state_dict(), "meta": {"width": 0.125, "depth": 0.33}}, tmp_path / "taught.pt")
    export(tmp_path / "taught.pt", tmp_path / "taught.onnx")
    pictures = torch.rand(4, 3, 416, 416)
    warm_start(fresh, tmp_path / "taught.onnx", [pictures[:2], pictures[2:]])
    assert fresh.training
    with torch.no_grad():
        learning = fresh(pictures)
        for a, b, c in zip(taught(pictures), fresh.eval()(pictures), learning, strict=True):
            assert a.std() > 0.01
            torch.testing.assert_close(b, a, rtol=1e-3, atol=1e-3 * float(a.abs().max()))
            # While learning, batches are normalised by themselves; these are the ones it was measured on.
            torch.testing.assert_close(c, a, rtol=1e-2, atol=1e-2 * float(a.abs().max()))
    with pytest.raises(ValueError, match="convolutions"):
        warm_start(Detector(0.25), tmp_path / "taught.onnx", [pictures])


def test_a_step_asks_the_device_for_nothing_so_that_it_can_be_recorded(pack: Any, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="training needs PyTorch")
    from demo_model.plan import Plan
    from demo_model.train import Trainer
    from torch.utils._python_dispatch import TorchDispatchMode

    seen: set[str] = set()

    class Listen(TorchDispatchMode):  # type: ignore[misc]
        def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.add(op.overloadpacket.__name__)
            return op(*args, **(kwargs or {}))

    teachers = tuple(shared(f"models/{n}.onnx") for n in ("yolox_nano", "picodet_s_416_coco"))
    for both in (False, True):
        plan = Plan(
            Path("unused"), tmp_path, device="cpu", batch=4, compile=False, width=0.125, teachers=teachers, both=both
        )
        trainer = Trainer(plan, 0.0, pack)
        trainer.augment.use(plan.strength())
        trainer.augment.shake(4)
        with Listen():
            pictures, rows = trainer.draw()
            parts = trainer.learn(pictures, *trainer.ask(pictures, rows))
        assert torch.isfinite(parts).all()
        assert (parts > 0).all()
    # `cumprod` is of the gradient of `prod`, which on a device looks for zeros, and waits.
    assert not seen & {"_local_scalar_dense", "nonzero", "masked_select", "cumprod", "rand", "randn"}
    assert {"convolution_backward", "scatter_reduce_"} <= seen


def test_teachers_say_in_pytorch_what_they_say_in_onnxruntime() -> None:
    torch = pytest.importorskip("torch", reason="training needs PyTorch")
    runtime = pytest.importorskip("onnxruntime", reason="the reference is ONNX Runtime")
    from demo_model.teacher import OnnxNet

    for name in ("yolox_nano", "picodet_s_416_coco"):
        path = shared(f"models/{name}.onnx")
        x = torch.rand(1, 3, 416, 416) * (255 if name == "yolox_nano" else 2)
        options = runtime.SessionOptions()
        options.log_severity_level = 3
        session = runtime.InferenceSession(str(path), options)
        want = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        with torch.no_grad():
            got = OnnxNet(path)(torch.cat([x, x]))
        for a, b in zip(want, got, strict=True):
            np.testing.assert_allclose(a, b[1:].numpy(), rtol=1e-2, atol=5e-3)


def test_pictures_to_calibrate_with_are_spread_over_each_folder(tmp_path: Path) -> None:
    from demo_model.pack import CALIBRATION, FOLDERS, calibration

    assert set(CALIBRATION) < set(FOLDERS)
    for folder, count in {"a": 9, "b": 2, "c": 5}.items():
        (tmp_path / "in" / folder / "images").mkdir(parents=True)
        for i in range(count):
            (tmp_path / "in" / folder / "images" / f"{i}.jpg").write_bytes(b"%d" % i)
    assert calibration(tmp_path / "in", tmp_path / "out", {"a": 3, "b": 3}) == 5
    names = {"a_0": b"0", "a_3": b"3", "a_6": b"6", "b_0": b"0", "b_1": b"1"}
    assert {path.stem: path.read_bytes() for path in (tmp_path / "out").iterdir()} == names
