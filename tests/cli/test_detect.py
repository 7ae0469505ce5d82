"""`streamd detect` on pictures, folders and videos, with real models."""

from __future__ import annotations

import json
import os
from pathlib import Path

import jsonschema
import numpy as np
import pytest

from streamd.cli.detect import _Input, _short_names
from tests.cli.commands import SMALL, one_message, streamd
from tests.clips import write_clip
from tests.conftest import shared
from tests.engine.onnx_models import constant_output


def test_detect_images_folder_and_video(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mp4", frames=6, fps=10)
    folder = shared("images/coco_val128/images")
    image = sorted(folder.iterdir())[3]
    saved = tmp_path / "out"
    done = streamd("detect", image, clip, "--model", shared(SMALL), "--head", "yolov5_sigmoid", "--save", saved)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 7
    assert [line.partition(" #")[0] for line in done.stdout.splitlines()] == [image.name, *["clip.mp4"] * 6]
    rows = {line.split()[0]: float(line.split()[1]) for line in done.stderr.splitlines()[3:9]}
    assert sum(rows.values()) == pytest.approx(2 * rows["total"], abs=0.1)  # what waits is told, too
    for word in ("mean", "p50", "p99", "decode", "preprocess", "infer", "postprocess", "frames/s"):
        assert word in done.stderr
    import av
    import cv2

    drawn, original = cv2.imread(str(saved / image.name)), cv2.imread(str(image))
    assert drawn is not None
    assert original is not None
    assert drawn.shape == original.shape
    assert np.abs(drawn.astype(int) - original).max() > 60
    with av.open(str(saved / "clip.mp4")) as container:
        assert container.streams.video[0].average_rate == 10
        assert sum(1 for _ in container.decode(video=0)) == 6


def test_inputs_are_told_apart() -> None:
    names = ["/a/x.mp4", "/b/x.mp4", "/b/y.mp4", "rtsp://h/y.mp4"]
    assert _short_names([_Input(name, True) for name in names]) == {"/b/y.mp4": "y.mp4"}
    assert _short_names([_Input("/a", False, [Path("/a/1.jpg"), Path("/a/2.jpg")])]) == {
        "/a/1.jpg": "1.jpg",
        "/a/2.jpg": "2.jpg",
    }


def test_keypoints_keep_to_their_boxes_through_tracks_and_classes(tmp_path: Path) -> None:
    """A weak box of the first class is left out; a sure one of the other class goes to the end with its points."""
    columns = np.zeros((1, 4 + 2 + 2 * 3, 84), np.float32)
    columns[0, :, 3] = [20, 30, 10, 12, 0.1, 0, 20, 30, 0.9, 25, 33, 0.8]
    columns[0, :, 40] = [40, 32, 16, 20, 0, 0.8, 40, 32, 0.7, 44, 28, 0.6]
    metadata = {"task": "pose", "kpt_shape": "[2, 3]", "names": "{0: 'cat', 1: 'dog'}"}
    model = constant_output(tmp_path / "pose.onnx", columns, metadata)
    clip = write_clip(tmp_path / "clip.mp4", frames=6, fps=10)
    saved = tmp_path / "out"
    done = streamd("detect", clip, "--model", model, "--track", "--json", "--save", saved)
    assert done.returncode == 0, done.stderr
    messages = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(messages) == 6
    for message in messages:
        (found,) = message["detections"]
        scale = message["width"] / 64
        left, top = 0, (64 * scale - message["height"]) / 2
        assert found["label"] == "dog"
        want = [[40 * scale - left, 32 * scale - top, 0.7], [44 * scale - left, 28 * scale - top, 0.6]]
        np.testing.assert_allclose(found["keypoints"], want, atol=2)
    assert messages[-1]["detections"][0]["track"]["id"] > 0
    assert (saved / "clip.mp4").stat().st_size > 0


def test_detect_json_is_the_message_and_nothing_else(tmp_path: Path) -> None:
    folder = shared("images/coco_val128/images")
    images = sorted(folder.iterdir())[:3]
    done = streamd(
        "detect",
        *images,
        "--model",
        shared(SMALL),
        "--head",
        "yolov5_sigmoid",
        "--json",
        "--conf",
        "0.3",
        "--classes",
        "person",
        "2",
    )
    assert done.returncode == 0, done.stderr
    messages = [json.loads(line) for line in done.stdout.splitlines()]
    schema = json.loads(streamd("schema", "message").stdout)
    for message, image in zip(messages, images, strict=True):
        jsonschema.validate(message, schema)
        assert message["source"] == str(image)
        assert {d["label"] for d in message["detections"]} <= {"person", "car"}
        assert all(d["score"] >= 0.3 for d in message["detections"])


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["none.mp4"], 4, "none.mp4: No such file"),
        (["x.jpg", "--model", "none.onnx"], 3, "none.onnx: does not exist"),
        (["0"], 4, "0: No such file or directory; a camera at this machine is /dev/video0"),
        (["rtsp://<user>:geheim@<ip>/x"], 2, "its host is still a placeholder"),
        (["rtsp:/10.0.0.7/x"], 2, "is read as the path of a file; a URL begins with rtsp://"),
        (["x.jpg", "--model", ""], 2, "model: is empty; expected a value (is a shell variable not set?)"),
        ([""], 2, "inputs: is empty; expected a value (is a shell variable not set?)"),
        (["x.jpg", "--limit", "0"], 2, "argument --limit: must be at least 1"),
        (["x.jpg", "--conf", "nan"], 2, "--conf: expected a finite number"),
        (["x.jpg", "--conf", "7"], 2, "--conf: expected at most 1, not 7"),
        (["x.jpg", "--max-det", "0"], 2, "--max-det: expected at least 1, not 0"),
        (["x.jpg", "--classes", "persn"], 2, "--classes: the model has no class 'persn'; did you mean person?"),
        (["x.jpg", "--classes", "car,bus"], 2, "give each class by itself: car bus on the command line"),
        (
            ["x.jpg", "--classes", "xyz"],
            2,
            "its classes are person, bicycle, car, motorcycle, airplane, bus and",
        ),
        (["x.jpg", "--save", "out.mp4"], 2, "--save out.mp4: expected a folder; each file in it is named as its input"),
    ],
)
def test_detect_names_what_is_wrong(arguments: list[str], code: int, message: str) -> None:
    if "--model" not in arguments:
        arguments = [*arguments, "--model", str(shared(SMALL)), "--head", "yolov5_sigmoid"]
    done = streamd("detect", *arguments)
    assert done.returncode == code, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert "geheim" not in done.stderr


def test_a_failing_stage_ends_detect_promptly_whatever_waits() -> None:
    """The model's head is not declared: its first frame is refused while a hundred images wait."""
    done = streamd("detect", shared("images/coco_val128/images"), "--model", shared(SMALL), timeout=40)
    assert done.returncode == 3, done.stderr
    assert "yolov5_sigmoid" in done.stderr
    assert "Traceback" not in done.stderr


def test_one_bad_input_does_not_cost_the_others(tmp_path: Path) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff nothing")
    clip = write_clip(tmp_path / "clip.mp4", frames=3)
    done = streamd(
        "detect",
        tmp_path / "broken.jpg",
        tmp_path / "none.mp4",
        clip,
        "--model",
        shared(SMALL),
        "--head",
        "yolov5_sigmoid",
    )
    assert done.returncode == 4
    assert len(done.stdout.splitlines()) == 3
    assert "broken.jpg" in done.stderr
    assert "none.mp4" in done.stderr


def test_detect_reads_folders_below_and_overwrites_nothing(tmp_path: Path) -> None:
    images = sorted(shared("images/coco_val128/images").iterdir())[:2]
    for name, image in zip((b"a.jpg", b"below/a.jpg", b"below/\xff.jpg"), (*images, images[0]), strict=True):
        target = tmp_path / "in" / os.fsdecode(name)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(image.read_bytes())
    arguments = ("detect", tmp_path / "in", "--recursive", "--save")  # with the model that comes with streamd
    refused = streamd(*arguments, tmp_path / "in")
    assert refused.returncode == 2
    assert one_message(refused.stderr).startswith("streamd: --save")
    done = streamd(*arguments, tmp_path / "out", "--json")
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 3
    assert f"saved: 3 images in {tmp_path / 'out'}" in done.stderr
    assert sorted(os.listdir(os.fsencode(tmp_path / "out"))) == [b"a-2.jpg", b"a.jpg", b"\xff.jpg"]
