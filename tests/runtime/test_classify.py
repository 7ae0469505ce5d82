"""Second-stage classifiers: a real model whose truth is exact, real frames, and what happens when something fails."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import numpy as np
import numpy.typing as npt
import pytest
from prometheus_client import CollectorRegistry

from streamd.config.classifiers import ClassifierSettings
from streamd.engine.null import NullSettings
from streamd.errors import BackendError, ConfigError, FrameError, ModelError
from streamd.imaging.crops import bgr_frame
from streamd.runtime.classify.budget import Budget
from streamd.runtime.classify.classification import Classification
from streamd.runtime.classify.classifier import Classifier
from streamd.runtime.classify.crop import part_of
from streamd.runtime.classify.objects import KEPT, Known
from streamd.runtime.classify.opening import open_classifier
from streamd.sinks.attributes import ClassifiedMessage
from streamd.sinks.envelope import CLASSIFIED, Message, MessageBuilder, OutgoingClasses
from streamd.sinks.message import json_schema
from streamd.types import Box, Boxes, Detections, Frame, ModelInfo, StageTimes, Tracks
from tests.engine.onnx_models import colours, constant_output
from tests.imaging.test_letterbox import make_frame

DETECTOR = ModelInfo("m", "ab" * 32, ("person", "car"))
COLOURS = {"red": (0, 0, 255), "green": (0, 255, 0), "blue": (255, 0, 0)}
LIMIT_S = 60.0


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return colours(tmp_path_factory.mktemp("models") / "colours.onnx")


def settings(path: Path | str = "none", **more: Any) -> ClassifierSettings:
    given = {"name": "colour", "model": {"path": str(path)}, "classes": ["car"], "budget": 1e5, "batch": 8,
             "min_size": 8, "engine": {"kind": "openvino", "threads": 1}}  # fmt: skip
    return ClassifierSettings.model_validate(given | more)


def picture(*boxes: tuple[Box, str], stream: str = "s") -> Frame:
    """Grey, with rectangles of pure colours."""
    image = np.full((120, 160, 3), 90, np.uint8)
    for box, colour in boxes:
        image[box.y : box.y + box.height, box.x : box.x + box.width] = COLOURS[colour]
    return replace(bgr_frame(make_frame(), image), stream=stream)


def detected(frame: Frame, boxes: list[Box], tracks: list[int] | None, seq: int = 0, class_id: int = 1) -> Detections:
    n = len(boxes)
    xyxy = np.array([(b.x, b.y, b.x + b.width, b.y + b.height) for b in boxes], np.float32).reshape(n, 4)
    return Detections(
        frame.stream, 0, seq, None, time.time_ns(), frame.width, frame.height,
        StageTimes(*[time.monotonic_ns()] * 6), DETECTOR,
        Boxes(
            xyxy, np.full(n, 0.9, np.float32), np.full(n, class_id, np.int32),
            None if tracks is None else Tracks(np.array(tracks, np.int64), np.zeros(n), np.zeros((n, 2))),
        ),
    )  # fmt: skip


class Made:
    """A classification with what it has published."""

    def __init__(self, *classifiers: ClassifierSettings, downloads: Any = None, start: bool = True) -> None:
        self.registry = CollectorRegistry()
        self.published: list[Message] = []
        self.generations: dict[str, int] = {}
        self.all = Classification(
            classifiers,
            NullSettings(),
            DETECTOR.labels,
            self.registry,
            self._publish,
            "boot",
            downloads or {},
            self.generations,
        )
        for stream in ("s", "t"):
            self.all.add(stream)
        self.first = self.all.classifiers[0]
        if start:
            self.all.start()

    def _publish(self, found: OutgoingClasses) -> None:
        self.published.append(MessageBuilder("boot").classified(found))

    def value(self, name: str, **labels: str) -> float:
        return self.registry.get_sample_value(f"streamd_{name}", {"classifier": "colour", **labels}) or 0.0

    def missed(self, reason: str, stream: str = "s") -> float:
        return self.value("classifier_missed_total", stream=stream, reason=reason)

    def labels(self, stream: str, *tracks: int) -> list[str]:
        found = self.all.of(stream, tracks) or [()] * len(tracks)
        return [" ".join(each.label for each in said) for said in found]


@pytest.fixture
def make() -> Iterator[Callable[..., Made]]:
    every: list[Made] = []

    def made(*classifiers: ClassifierSettings, **more: Any) -> Made:
        every.append(Made(*classifiers, **more))
        return every[-1]

    yield made
    for each in every:
        assert each.all.close(LIMIT_S)


def wait(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


PLACES = [Box(4, 6, 40, 30), Box(60, 20, 24, 60), Box(101, 71, 50, 40)]


def test_each_track_has_the_colour_of_its_own_crop(make: Any, model: Path) -> None:
    """Objects of two streams in one batch; each is only as large as its box, so another crop has another colour."""
    made = make(settings(model), start=False)
    first = picture(*zip(PLACES, ("red", "green", "blue"), strict=True))
    second = picture(*zip(PLACES, ("blue", "red", "green"), strict=True), stream="t")
    made.all.take(first, detected(first, PLACES, [11, 12, 13], seq=7))
    made.all.take(second, detected(second, PLACES, [21, 0, 23], seq=9))
    assert made.value("classifier_waiting") == 5
    assert made.value("classifier_bytes") == 3 * sum(b.width * b.height for b in (*PLACES, PLACES[0], PLACES[2]))
    made.all.start()
    wait(lambda: "" not in (*made.labels("s", 11, 12, 13), *made.labels("t", 21, 23)))
    assert made.labels("s", 11, 12, 13) == ["red", "green", "blue"]
    assert made.labels("t", 21, 22, 23) == ["blue", "", "green"]
    (said,) = made.all.of("s", [11])[0]
    assert (said.classifier, said.observed_seq, said.crops) == ("colour", 7, 1)
    assert said.score == pytest.approx(1.0, abs=1e-3)
    assert made.all.details("t", 23)["colour"]["label"] == "green"
    assert made.all.details("t", 99) == {}
    wait(lambda: made.value("classifier_bytes") == 0)
    assert made.value("classifier_latency_seconds_count") == 5
    assert made.value("classified_total", stream="s", label="red") == 1
    assert made.value("classifier_busy_seconds_total") > 0


def test_nothing_is_classified_again_before_it_is_due(make: Any, model: Path) -> None:
    made = make(settings(model, refresh_s=1000))
    red, large = Box(20, 20, 20, 20), Box(20, 20, 40, 40)
    for seq in range(5):
        frame = picture((red, "red"))
        made.all.take(frame, detected(frame, [red], [1], seq))
        wait(lambda: made.labels("s", 1) == ["red"])
    assert made.value("classified_total", stream="s", label="red") == 1
    # Seen clearly better, it is classified at once; the votes of both crops count.
    made.first.objects["s"][1].again_at = 0
    frame = picture((large, "green"))
    made.all.take(frame, detected(frame, [large], [1], 5))
    wait(lambda: made.all.of("s", [1])[0][0].crops == 2)
    assert made.all.of("s", [1])[0][0].label == "green"
    assert made.all.of("s", [1])[0][0].score == pytest.approx(1 / (1 + KEPT), abs=1e-3)


def test_votes_outweigh_a_single_wrong_crop() -> None:
    known = Known(0)
    for seq, row in enumerate([[0.9, 0.1], [0.8, 0.2], [0.2, 0.8]]):
        known.vote(np.array(row), seq)
    weights = np.array([KEPT**2, KEPT, 1])
    said = known.attribute("n", "ab", 0.5, 2)
    assert said is not None
    assert said.label == "a"
    assert said.score == pytest.approx(float(weights @ [0.9, 0.8, 0.2] / weights.sum()), abs=1e-4)
    assert (said.observed_seq, said.crops, said.others[0][0]) == (2, 3, "b")
    assert known.attribute("n", "ab", 0.7, 1) is None


def test_only_chosen_classes_streams_and_sizes(make: Any, model: Path) -> None:
    made = make(settings(model, min_size=25, streams=["s"]))
    frame = picture((PLACES[0], "red"), (PLACES[1], "green"))
    made.all.take(frame, detected(frame, PLACES[:2], [1, 2]))
    made.all.take(frame, detected(frame, PLACES[:2], [1, 2]))
    made.all.take(frame, detected(frame, PLACES[:1], [3], class_id=0))
    other = replace(frame, stream="t")
    made.all.take(other, detected(other, PLACES[:1], [4]))
    wait(lambda: made.labels("s", 1) == ["red"])
    assert list(made.first.objects) == ["s"]
    assert list(made.first.objects["s"]) == [1, 2]
    assert made.missed("too_small") == 1
    made.all.remove("s")
    assert made.all.of("s", [1]) is None
    made.all.take(frame, detected(frame, PLACES[:1], [5]))
    assert made.first.objects == {}


def test_without_tracks_there_is_a_message_for_each_frame(make: Any, model: Path) -> None:
    made = make(settings(model, top_k=2), start=False)
    for seq in (3, 4):
        frame = picture((PLACES[0], "red"), (PLACES[2], "blue"))
        made.all.take(frame, detected(frame, [PLACES[0], PLACES[2]], None, seq))
    made.all.start()
    wait(lambda: len(made.published) == 2)
    validator = jsonschema.Draft202012Validator(json_schema())
    for seq, message in zip((3, 4), made.published, strict=True):
        assert message.topic == b"streamd/classified/1/s"
        assert message.kind is CLASSIFIED
        validator.validate(json.loads(message.payload))
        told = msgspec.json.decode(message.payload, type=ClassifiedMessage)
        assert (told.observed_seq, told.stream, told.width) == (seq, "s", 160)
        assert [(o.label, o.attribute.label) for o in told.objects] == [("car", "red"), ("car", "blue")]
        assert told.objects[1].box == (101, 71, 151, 111)
        assert isinstance(told.objects[0].attribute.others, list)


def test_a_message_has_the_generation_of_its_frame(make: Any, model: Path) -> None:
    """A box of a fleet loses the stream and has it again while crops wait."""
    made = make(settings(model), start=False)
    frame = picture((PLACES[0], "red"))
    for seq, generation in enumerate((0, 1_796_000_000_123, 1_796_000_000_130)):
        if generation:
            made.generations["s"] = generation
        made.all.take(frame, detected(frame, PLACES[:1], None, seq))
    made.all.start()
    wait(lambda: len(made.published) == 3)
    found = [json.loads(message.payload) for message in made.published]
    assert [m.get("generation") for m in found] == [None, 1_796_000_000_123, 1_796_000_000_130]
    for message in found:
        jsonschema.Draft202012Validator(json_schema()).validate(message)


def test_a_stream_that_begins_again_learns_nothing_of_its_earlier_tracks(make: Any, model: Path) -> None:
    made = make(settings(model), start=False)
    frame = picture((PLACES[0], "red"))
    made.all.take(frame, detected(frame, PLACES[:1], [1]))
    made.all.remove("s")
    made.all.add("s")
    frame = picture()
    made.all.take(frame, detected(frame, [Box(0, 0, 4, 4)], [1]))  # another object, too small for a crop
    made.all.start()
    wait(lambda: made.value("classified_total", stream="s", label="red") == 1)
    assert made.labels("s", 1) == [""]


def test_a_reload_changes_what_is_told_and_what_is_taken(make: Any, model: Path) -> None:
    made = make(settings(model))
    frame = picture((PLACES[0], "red"))
    made.all.take(frame, detected(frame, PLACES[:1], [1]))
    wait(lambda: made.labels("s", 1) == ["red"])
    known = made.first.objects["s"][1]
    known.vote(np.array([0.0, 1.0, 0.0]), 1)
    made.all.adapt([settings(model, threshold=0.9, top_k=2)])
    assert made.labels("s", 1) == [""]
    made.all.adapt([settings(model, threshold=0.4, top_k=2, streams=["t"])])
    (said,) = made.all.of("s", [1])[0]
    assert (said.label, said.others[0][0]) == ("green", "red")
    assert list(made.all.wanted) == ["t"]
    with pytest.raises(ConfigError, match=r"classifier colour: classes: the model has no class 'cra'; did you mean"):
        made.all.check([settings(model, classes=["cra"])])


def test_the_budget_holds(make: Any, model: Path) -> None:
    """Ten crops at once of which four may be taken: the rest is counted, and no object has two turns."""
    made = make(settings(model, budget=4))
    for track in range(10):
        frame = picture((PLACES[0], "red"))
        made.all.take(frame, detected(frame, PLACES[:1], [track + 1]))
    taken = sum(known.crops or known.pending for known in made.first.objects["s"].values())
    assert taken >= 4
    assert taken + made.missed("budget") == 10
    budget = Budget(4.0)
    assert sum(budget.admit(i / 100, first=True) for i in range(1000)) in range(43, 45)
    # What was never classified goes first.
    budget = Budget(4.0)
    assert [budget.admit(0, first=False) for _ in range(5)] == [True, True, True, False, False]
    assert budget.admit(0, first=True)
    share = Budget("5%")
    assert all(share.admit(0, first=False) for _ in range(100))
    assert share.pause(0.01) == pytest.approx(0.19)
    assert Budget("100%").pause(1.0) == 0
    assert Budget(5.0).pause(1.0) == 0


def test_memory_is_bounded(make: Any, model: Path) -> None:
    size = 3 * PLACES[0].width * PLACES[0].height
    made = make(settings(model, memory_mb=2.5 * size / 1e6), start=False)
    for track in (1, 2, 3):
        frame = picture((PLACES[0], "red"))
        made.all.take(frame, detected(frame, PLACES[:1], [track]))
    assert made.value("classifier_bytes") == 2 * size
    assert made.missed("memory") == 1
    made.all.start()
    wait(lambda: made.labels("s", 1, 2) == ["red", "red"])
    made.first.objects["s"][3].again_at = made.first.objects["s"][3].due_at = 0
    wait(lambda: made.value("classifier_bytes") == 0)
    frame = picture((PLACES[0], "red"))
    made.all.take(frame, detected(frame, PLACES[:1], [3]))
    wait(lambda: made.labels("s", 3) == ["red"])


def test_a_failing_classifier_costs_no_frame(make: Any, monkeypatch: pytest.MonkeyPatch, model: Path) -> None:
    made = make(settings(model))
    backend: Any = made.first._backend
    infer = backend.infer
    monkeypatch.setattr("streamd.runtime.classify.classifier.RETRY_S", (0.05, 0.05))

    def broken(_: Any) -> None:
        raise BackendError("the device is gone")

    monkeypatch.setattr(backend, "infer", broken)
    frame = picture((PLACES[0], "red"))
    made.all.take(frame, detected(frame, PLACES[:1], [1]))
    wait(lambda: made.missed("failed") == 1)
    assert made.labels("s", 1) == [""]
    wait(lambda: made.value("classifier_bytes") == 0)
    monkeypatch.setattr(backend, "infer", infer)

    def again() -> bool:
        made.first.objects["s"][1].again_at = made.first.objects["s"][1].due_at = 0
        made.all.take(frame, detected(frame, PLACES[:1], [1]))
        return bool(made.labels("s", 1) == ["red"])

    wait(again)


def test_an_error_while_taking_a_crop_is_kept_from_the_pipeline(make: Any, model: Path) -> None:
    made = make(settings(model))
    frame = picture((PLACES[0], "red"))
    d = detected(frame, PLACES[:1], [1])
    nowhere = Boxes(np.full((1, 4), np.nan, np.float32), d.score, d.class_id, d.tracks)
    made.all.take(frame, replace(d, boxes=nowhere))
    assert made.missed("failed") == 1


def test_one_crop_that_cannot_be_read_is_left_out(make: Any, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = make(settings(model), start=False)
    backend: Any = made.first._backend
    preprocess = backend.preprocess

    def picky(slot: Any, frames: Any) -> Any:
        if any(frame.width == PLACES[1].width for frame in frames):
            raise FrameError("cannot be read")
        return preprocess(slot, frames)

    monkeypatch.setattr(backend, "preprocess", picky)
    frame = picture(*zip(PLACES, ("red", "green", "blue"), strict=True))
    made.all.take(frame, detected(frame, PLACES, [1, 2, 3]))
    made.all.start()
    wait(lambda: made.labels("s", 1, 3) == ["red", "blue"])
    assert made.missed("format") == 1
    assert made.labels("s", 2) == [""]


def test_impossible_scores_are_no_result(make: Any, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = make(settings(model))
    backend: Any = made.first._backend
    monkeypatch.setattr(backend, "collect", lambda slot: [np.full((slot.count, 3), np.nan, np.float32)])
    frame = picture((PLACES[0], "red"))
    made.all.take(frame, detected(frame, PLACES[:1], [1]))
    wait(lambda: made.missed("invalid_output") == 1)
    assert made.labels("s", 1) == [""]


def test_frames_in_device_memory_are_cut_out_by_the_device(make: Any, model: Path) -> None:
    """At most two wait: each holds one of the decoder's surfaces."""
    asked: list[tuple[Box | None, int, int]] = []
    go = threading.Event()

    def download(frame: Frame, width: int, height: int) -> npt.NDArray[np.uint8]:
        asked.append((frame.roi, width, height))
        assert go.wait(LIMIT_S)
        return np.full((height, width, 3), COLOURS["blue"], np.uint8)

    made = make(settings(model, batch=1), downloads={0: download})
    plain = picture((PLACES[0], "red"))
    on_device = replace(plain, picture=replace(plain.picture, device=0))
    for track in (1, 2, 3):
        made.all.take(on_device, detected(plain, PLACES[:1], [track]))
    elsewhere = replace(plain, picture=replace(plain.picture, device=1))
    made.all.take(elsewhere, detected(plain, PLACES[:1], [4]))
    assert made.missed("surfaces") == 1
    assert made.missed("device") == 1
    go.set()
    wait(lambda: made.labels("s", 1, 2) == ["blue", "blue"])
    assert asked == [(PLACES[0], PLACES[0].width, PLACES[0].height)] * 2
    assert made.first._frames_held == 0


def test_a_hanging_classifier_holds_up_nobody(make: Any) -> None:
    """Crops wait until there is no room; then each is refused at once. It cannot be closed in time, and says so."""
    made = make(settings("none", engine={"kind": "null", "classes": 3, "hang_after": 2, "slots": 1}, batch=1))
    frame = picture((PLACES[0], "red"))
    for track in range(1, 601):
        made.all.take(frame, detected(frame, PLACES[:1], [track]))
    assert made.missed("queue_full") > 0
    wait(lambda: made.value("classifier_waiting") in (511, 512))
    assert not made.all.close(0.05)
    backend: Any = made.first._backend
    backend.close()


@pytest.mark.parametrize(
    ("corners", "margin", "part"),
    [
        ((10.2, 20.7, 29.1, 40.0), 0.0, Box(10, 20, 20, 20)),
        ((-5, -5, 300, 300), 0.0, Box(0, 0, 160, 120)),
        ((40, 40, 60, 80), 0.25, Box(35, 30, 30, 60)),
        ((159.5, 119.5, 159.9, 119.9), 0.0, Box(159, 119, 1, 1)),
        ((200, 200, 210, 210), 0.0, Box(159, 119, 1, 1)),
    ],
)
def test_a_part_is_the_box_in_whole_pixels_inside_the_picture(
    corners: tuple[float, float, float, float], margin: float, part: Box
) -> None:
    assert part_of(corners, margin, 160, 120) == part


def opened(path: Path, **more: Any) -> Classifier:
    return Classifier(settings(path, **more), NullSettings(), DETECTOR.labels, lambda *_: None, {}, {})


def test_what_is_no_classifier_is_refused(tmp_path: Path, model: Path) -> None:
    with pytest.raises(ModelError, match=r"classifier colour: model .*does not exist"):
        open_classifier(settings(tmp_path / "no.onnx"), NullSettings())
    detector = constant_output(tmp_path / "d.onnx", np.zeros((1, 6, 8)), {"names": "['a', 'b']"})
    with pytest.raises(ConfigError, match=r"classifier colour: model .*detector, which belongs in the section model"):
        open_classifier(settings(detector, batch=1), NullSettings())
    with pytest.raises(ConfigError, match="classifier colour: classes: the model has no class 'bus'"):
        opened(model, classes=["bus"])
    with pytest.raises(ConfigError, match=r"declare model\.output: logits"):
        opened(model, model={"path": str(model), "output": "probabilities"})
    odd = opened(colours(tmp_path / "odd.onnx", size=29, softmax=True))
    assert (odd._scores.scores, odd._backend.spec.placement.resize) == ("probabilities", "stretch")
    assert odd.close(LIMIT_S)


def test_the_input_is_made_as_declared(make: Any, tmp_path: Path) -> None:
    """With the channels exchanged and the range inverted by mean and std, red is what looks least blue: exactly so."""
    path = colours(tmp_path / "m.onnx")
    given = {"path": str(path), "color": "BGR", "mean": [1, 1, 1], "std": [0.25, 0.5, 1], "resize": "letterbox"}
    made = make(settings(path, model=given, top_k=3))
    frame = picture((Box(20, 20, 32, 32), "red"))
    made.all.take(frame, detected(frame, [Box(20, 20, 32, 32)], [1]))
    wait(lambda: made.all.of("s", [1]))
    (said,) = made.all.of("s", [1])[0]
    # BGR of red is 0, 0, 1: inputs are -4, -2, 0.
    assert [said.label, *(label for label, _ in said.others)] == ["blue", "green", "red"]
    logits = np.array([-80.0, -40.0, 0.0])
    assert said.score == pytest.approx(float(1 / np.exp(logits).sum()), abs=1e-4)
