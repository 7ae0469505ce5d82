"""The section `classifiers`: second-stage models on the crops of detected objects."""

from __future__ import annotations

import contextlib
import re
from collections import Counter
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError

from streamd.engine import EngineConfig, InputSize, ModelSettings
from streamd.settings import ConfigPath, Name, Problems, Seconds, Settings, Unit, schema_of

_PERCENT = re.compile(r"(100|[1-9][0-9]?|[0-9]{1,2}\.[0-9]{1,3})%")


def _budget(value: Any) -> float | str:
    with contextlib.suppress(ValueError, TypeError):
        if not isinstance(value, bool) and 0 < float(value) <= 100_000:
            return float(value)
    if isinstance(value, str) and _PERCENT.fullmatch(value) and float(value[:-1]):
        return value
    raise PydanticCustomError("budget", "expected a number of crops a second, or a share of the time such as 5%")


class ClassifierModel(ModelSettings):
    """The classifier's model file and how its input is made. A field that is left out comes from the model's sidecar
    (`MODEL.onnx.json`), otherwise it has the default that is named here."""

    DEFAULT_SIZE: ClassVar[tuple[int, int]] = (224, 224)
    DEFAULT_RESIZE: ClassVar[Literal["letterbox", "stretch"]] = "stretch"
    STRIDED: ClassVar[bool] = False

    path: ConfigPath = Field(min_length=1, description="Model file: ONNX, OpenVINO IR (.xml) or TensorRT plan.")
    labels: tuple[str, ...] | ConfigPath | None = Field(
        None,
        description="Class names in order: a list, or a text file with one name per line. Default: from the sidecar or "
        "the model's metadata; required if neither has them.",
    )
    resize: Literal["letterbox", "stretch"] | None = Field(
        None,
        description="How a crop is fitted to the input. stretch: it fills the input. letterbox: it keeps its aspect "
        "ratio and is padded. Default: stretch.",
    )
    input_size: InputSize | None = Field(
        None,
        description="Height and width of the input in pixels, if the model leaves them open; any size. Default: 224, "
        "224. TensorRT has no default.",
    )
    output: Literal["logits", "probabilities"] | None = Field(
        None,
        description="What the output is. Default: determined at the start from two test pictures. Required if its "
        "values are between 0 and 1 but do not add up to 1.",
    )


class ClassifierSettings(Settings):
    """A model that says more of detected objects, such as a vehicle's type or whether a helmet is worn."""

    name: Name = Field(description="Name in messages, metrics and logs; unique.")
    model: ClassifierModel = Field(description="The model: pictures in, one score per class out.")
    classes: tuple[str | int, ...] = Field(
        min_length=1, description="Classes of the detector whose objects are classified, by name or number."
    )
    streams: tuple[Name, ...] | None = Field(
        None, description="Ids of the streams whose objects are classified. Default: all."
    )
    min_size: float = Field(
        32.0, ge=2, le=10_000, description="Shortest side of a box that is classified, in pixels of the picture."
    )
    margin: float = Field(
        0.0,
        ge=0,
        le=1,
        description="How much a box is enlarged on each side before it is cut out, as a fraction of its size.",
    )
    threshold: Unit = Field(0.5, description="Lowest score of a label that is published.")
    top_k: int = Field(1, ge=1, le=10, description="Number of labels that are published per object, the best first.")
    refresh_s: Seconds = Field(
        5.0,
        description="Time after which a tracked object is classified again, in seconds. It happens earlier if the "
        "object is seen clearly better (docs/classifiers.md). Raise it if crops are missed for lack of budget "
        "(`streamd_classifier_missed_total`).",
    )
    budget: Annotated[float | str, BeforeValidator(_budget)] = Field(
        "5%",
        json_schema_extra=schema_of({"type": "number", "exclusiveMinimum": 0, "maximum": 100_000}, {"type": "string"}),
        description="Limit of the classifier's load: crops per second, as in `20`, or the share of the time that "
        "it may be busy, as in `5%`. Each worker process has its own.",
    )
    memory_mb: float = Field(
        16.0, gt=0, le=4096, description="Largest memory for crops that wait or are being classified, in megabytes."
    )
    batch: int | None = Field(
        None,
        ge=1,
        le=256,
        description="Largest number of crops in a batch. Default: 1 on a CPU, the model's own limit on a GPU.",
    )
    engine: EngineConfig | None = Field(
        None, description="Inference backend. Default: the detector's, on a CPU with one thread."
    )

    HOT: ClassVar[frozenset[str]] = frozenset(
        {"classes", "streams", "min_size", "margin", "threshold", "top_k", "refresh_s", "budget", "memory_mb"}
    )
    """Fields that may change while running."""


def check_classifiers(classifiers: tuple[ClassifierSettings, ...], streams: frozenset[str]) -> Problems:
    """Problems of the section.

    Args:
        classifiers: the section.
        streams: ids of all streams.
    """
    times = Counter(each.name for each in classifiers)
    for i, each in enumerate(classifiers):
        if times[each.name] > 1:
            yield (
                ("classifiers", i, "name"),
                f"{each.name} is the name of {times[each.name]} classifiers; names must be unique",
            )
        for k, stream in enumerate(each.streams or ()):
            if stream not in streams:
                yield ("classifiers", i, "streams", k), f"{stream} is not the id of a stream"
        if each.engine is not None:
            yield from ((("classifiers", i, "engine", *path), message) for path, message in each.engine.check())
            if len(each.engine.devices) > 1:
                yield ("classifiers", i, "engine", "device"), "a classifier runs on one device; name one"
