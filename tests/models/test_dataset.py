"""Labels: both forms, and what is wrong with them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from streamd.errors import ConfigError
from streamd.models.dataset import open_dataset, read_coco, read_yolo
from tests.models.nets import pictures

NAMES = ("cat", "dog")


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return pictures(tmp_path / "images", 2)


def test_yolo_text_is_relative_to_the_image(images: Path, tmp_path: Path) -> None:
    labels = tmp_path / "labels"
    labels.mkdir()
    (labels / "p0.txt").write_text("1 0.5 0.5 0.5 0.25\n\n")
    data = open_dataset(images, labels, NAMES)
    assert data.unlabelled == 1
    truth = data.truth["p0.png"]
    assert truth.class_id.tolist() == [1]
    assert truth.pixels(96, 64).tolist() == [[24, 24, 72, 40]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0 0.5 0.5 0.5", r":1: expected `class cx cy w h`"),
        ("0 0.5 0.5 0.5 0.5\ncat 0 0 0 0", r":2: expected"),
        ("1_0 0.5 0.5 0.5 0.5", r":1: expected"),
        ("\u0661 0.5 0.5 0.5 0.5", r":1: expected"),
        ("2 0.5 0.5 0.5 0.5", r"class 2 is not one of 0\.\.1"),
        ("0 50 50 20 20", r"outside 0\.\.1"),
        ("0 nan 0.5 0.5 0.5", r"outside 0\.\.1"),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "p0.txt"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=message) as caught:
        read_yolo(file, 2)
    assert str(file) in str(caught.value)


def coco(**changes: Any) -> dict[str, Any]:
    return {
        "images": [{"id": 7, "file_name": "sub/p1.png", "width": 96, "height": 64}],
        "annotations": [
            {"id": 1, "image_id": 7, "category_id": 18, "bbox": [10, 20, 30, 40], "area": 900, "iscrowd": 1}
        ],
        "categories": [{"id": 17, "name": "cat"}, {"id": 18, "name": "dog"}],
    } | changes


def test_coco_json(images: Path, tmp_path: Path) -> None:
    file = tmp_path / "labels.json"
    file.write_text(json.dumps(coco()))
    truth = open_dataset(images, file, NAMES).truth["p1.png"]
    assert truth.class_id.tolist() == [1]
    assert truth.pixels(96, 64).tolist() == [[10, 20, 40, 60]]
    assert (truth.crowd.tolist(), truth.area.tolist()) == ([1], [900])


def test_categories_by_order_where_names_differ(tmp_path: Path) -> None:
    file = tmp_path / "labels.json"
    file.write_text(json.dumps(coco(categories=[{"id": 18, "name": "Hund"}, {"id": 17, "name": "Katze"}])))
    assert read_coco(file, NAMES)["p1.png"].class_id.tolist() == [1]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not valid JSON"),
        ("[]", "not a COCO annotation file"),
        (json.dumps(coco(annotations=[{"image_id": 7}])), "not a COCO annotation file"),
        (json.dumps(coco(categories=[{"id": 1, "name": "x"}])), "1 categories, including 'x'"),
    ],
)
def test_a_json_that_is_not_coco(tmp_path: Path, content: str, message: str) -> None:
    file = tmp_path / "labels.json"
    file.write_text(content)
    with pytest.raises(ConfigError, match=message):
        read_coco(file, NAMES)


def test_a_coco_file_with_more_classes_than_the_model(images: Path, tmp_path: Path) -> None:
    categories = [{"id": 18, "name": NAMES[1]}, {"id": 17, "name": NAMES[0]}, {"id": 3, "name": "lorry"}]
    strange = {"id": 2, "image_id": 7, "category_id": 3, "bbox": [0, 0, 5, 5]}
    content = coco(categories=categories)
    file = tmp_path / "labels.json"
    file.write_text(json.dumps(content | {"annotations": [*content["annotations"], strange]}))
    data = open_dataset(images, file, NAMES)
    assert (data.truth["p1.png"].class_id.tolist(), data.left_out) == ([1], 1)


def test_labels_with_names_of_their_own(images: Path, tmp_path: Path) -> None:
    labels = tmp_path / "numbered"
    labels.mkdir()
    (labels / "p0.txt").write_text("2 0.5 0.5 0.1 0.1\n1 0.5 0.5 0.2 0.2\n0 0.5 0.5 0.3 0.3\n")
    data = open_dataset(images, labels, NAMES, ("lorry", NAMES[1], NAMES[0]))
    assert (data.truth["p0.png"].class_id.tolist(), data.left_out) == ([0, 1], 1)
    assert (data.truth["p0.png"].xyxy[:, 2] - data.truth["p0.png"].xyxy[:, 0]).tolist() == pytest.approx([0.1, 0.2])
    with pytest.raises(ConfigError, match=r"none of their 1 classes \(lorry, …\) is one of the model's: "):
        open_dataset(images, labels, NAMES, ("lorry",))
    with pytest.raises(ConfigError, match=r"class 2 is not one of 0\.\.1; .* --label-names FILE"):
        open_dataset(images, labels, NAMES)


def test_nothing_there(tmp_path: Path, images: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(ConfigError, match="contains no image"):
        open_dataset(empty, empty, NAMES)
    with pytest.raises(ConfigError, match="does not exist"):
        open_dataset(tmp_path / "no", empty, NAMES)
    with pytest.raises(ConfigError, match=r"no box for any of the 2 images .* like p0\.txt"):
        open_dataset(images, empty, NAMES)
    with pytest.raises(ConfigError, match="does not exist"):
        open_dataset(images, tmp_path / "no", NAMES)
