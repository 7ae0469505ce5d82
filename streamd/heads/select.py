"""Which head a model has: declared, or recognised from shapes; never guessed."""

from __future__ import annotations

import json
from contextlib import suppress

from pydantic import ValidationError

from streamd.errors import ConfigError, ModelError
from streamd.heads import HEADS, DecodeOptions, DetectSettings, Head, HeadSettings
from streamd.heads.coco import COCO80
from streamd.heads.common import listed
from streamd.heads.foreign import ForeignHead
from streamd.heads.postprocess import with_suppression
from streamd.settings.plugins import opened, origin
from streamd.types import ModelSpec

MOST_CLASSES = 10_000
"""Detectors of open vocabularies have some thousands; more are rows that are read as columns."""
TASKS = ("detect", "segment", "pose", "obb", "classify")
"""Tasks of Ultralytics' exporter. With any other word, the task does not exclude a head."""


def recognise(spec: ModelSpec) -> HeadSettings:
    """The head's settings: those of the sidecar, otherwise what the output shapes allow.

    Raises:
        ConfigError: the shapes fit no head or more than one; the message lists the shapes and says what to declare.
    """
    if spec.head is not None:
        return _validated(dict(spec.head), f"sidecar of {spec.path}: ")
    outputs = listed(spec)
    kinds = [kind for kind in HEADS if reads_task(kind, spec)]
    if not kinds:
        raise ConfigError(_no_task(spec))
    for kind in kinds:
        if said := kind.undecodable(spec):
            raise ConfigError(f"model {spec.path}: outputs {outputs} {said}")
    fits = [settings for kind in kinds if (settings := kind.recognise(spec)) is not None]
    if len(fits) == 1:
        return fits[0]
    if fits:
        several = " and ".join(f.kind for f in fits)
        raise ConfigError(f"model {spec.path}: output {outputs} fits {several}; declare model.head.kind")
    shapes = [t.shape for t in spec.outputs]
    if len(shapes) != 1 or len(shapes[0]) != 3:
        known = "; ".join(f"{name} {kind.form}" for name, kind in HEADS.builtin().items())
        raise ConfigError(
            f"model {spec.path}: no known head has outputs {outputs}; known: {known}. Export the model in one of "
            f"these forms, or declare model.head.kind if another package has its head{_others()}"
        )
    if min(shapes[0][1:]) < 1:
        raise ConfigError(f"model {spec.path}: output {outputs} has a dynamic shape; declare model.head.kind: {_any()}")
    raise ConfigError(
        f"model {spec.path}: output {outputs} fits no head at input {spec.input_height}×{spec.input_width} "
        f"({_expected(spec)}); declare model.head.kind: {_any()}"
    )


def _any() -> str:
    *others, last = HEADS.names()
    return f"{', '.join(others)} or {last}"


def _others() -> str:
    names = ", ".join(HEADS.plugins())
    return f" (installed: {names})" if names else ""


def _expected(spec: ModelSpec) -> str:
    """The shapes that each head expects."""
    classes = len(spec.labels) or len(COCO80)
    found = {
        name: " ".join(str(list(shape)) for shape in kind.shapes(spec.input_height, spec.input_width, classes))
        for name, kind in HEADS.builtin().items()
    }
    return f"with {classes} classes " + ", ".join(f"{name} has {shapes}" for name, shapes in found.items() if shapes)


def _validated(value: object, where: str) -> HeadSettings:
    try:
        return HEADS.adapter().validate_python(value)
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, ('head', *e['loc'])))}: {e['msg']}" for e in error.errors())
        raise ConfigError(f"{where}{problems}") from error


def declared(kind: str | None, spec: ModelSpec) -> HeadSettings | None:
    """The settings for a kind given by name only: the sidecar's if it is of that kind, otherwise the kind's defaults.

    Returns:
        None if `kind` is None.

    Raises:
        ConfigError: there is no such kind, or the sidecar's head is of that kind but invalid.
    """
    if kind is None:
        return None
    if spec.head is not None and spec.head.get("kind") == kind:
        return recognise(spec)
    return _validated({"kind": kind}, "")


def check_decoded(kind: str | None, spec: ModelSpec, *, ends_in_sigmoid: bool) -> None:
    """Rejects outputs after a sigmoid where the head reads something else: of boxes that are relative to cells, nothing
    later would tell.

    Args:
        kind: the head that is declared beside the model, if any.
        spec: the model.
        ends_in_sigmoid: one of its outputs is nothing but values after a sigmoid.

    Raises:
        ConfigError: the declared head does not exist, or its settings are invalid.
        ModelError: its head, declared or recognised, cannot decode that.
    """
    if ends_in_sigmoid and (said := sigmoid_contradicts(kind, spec)):
        raise ModelError(f"model {spec.path}: {said}")


def sigmoid_contradicts(kind: str | None, spec: ModelSpec) -> str:
    """For a model with an output that ends in a sigmoid: why its head cannot decode it, what to do; empty if it can.

    Args:
        kind: the head that is declared beside the model, if any.
        spec: the model. Outputs of unknown shape may be those of any head with as many dimensions.

    Raises:
        ConfigError: the declared head does not exist, or its settings are invalid.
    """
    said = [head.sigmoid_contradicts for head in _heads(kind, spec) if head.sigmoid_contradicts]
    return f"its outputs end in a sigmoid{said[0]}" if said else ""


def _heads(kind: str | None, spec: ModelSpec) -> list[type[HeadSettings]]:
    """The head that is declared, otherwise those that the outputs may be of."""
    if kind is not None or spec.head is not None:
        return [type(declared(kind, spec) or recognise(spec))]
    kinds = [kind for kind in HEADS if reads_task(kind, spec)]
    if all(min(tensor.shape[1:], default=-1) > 0 for tensor in spec.outputs):
        return [kind for kind in kinds if kind.recognise(spec) is not None]
    found = [len(tensor.shape) for tensor in spec.outputs]
    height, width = spec.input_height, spec.input_width
    return [kind for kind in kinds if [len(shape) for shape in kind.shapes(height, width, len(COCO80))] == found]


def reads_task(kind: type[HeadSettings], spec: ModelSpec) -> bool:
    """Whether heads of that kind decode the model's task according to its exporter. Unknown tasks exclude nothing."""
    task = _task(spec)
    return task not in TASKS or task in kind.tasks


def _task(spec: ModelSpec) -> str:
    return spec.metadata.get("task", "").strip().lower()


def _no_task(spec: ModelSpec, kind: str | None = None) -> str:
    """The error for a task that no head decodes, or that the declared head does not."""
    told = f"model {spec.path}: its metadata says that it was exported for the task {_task(spec)}"
    fits = [name for name, each in HEADS.builtin().items() if _task(spec) in each.tasks]
    if kind is None or not fits:
        return f"{told}, which no head decodes. Export a detection model (task=detect)"
    return f"{told}, which the head {kind} does not decode; declare model.head.kind: {', '.join(fits)}, or leave it out"


def check_input(settings: HeadSettings, spec: ModelSpec) -> None:
    """Checks that it is known how the model's input is made.

    Raises:
        ConfigError: models of the head's family need a special input, and it is not declared for this one.
    """
    if settings.usual_input and not spec.input_declared:
        usual = json.dumps(dict(settings.usual_input), separators=(",", ":"))
        words = ", ".join(f"{key}: {json.dumps(value)}" for key, value in settings.usual_input.items())
        raise ConfigError(
            f"model {spec.path}: {settings.kind} models are not fed as others are, and nothing says how this one is. "
            f"Their exports usually take {words}: write that into the configuration's model section, or "
            f'{{"version":1,{usual[1:]} into {spec.path}.json; where this one differs, say how'
        )


def open_head(settings: HeadSettings | None, spec: ModelSpec, detect: DetectSettings) -> Head:
    """Creates the head that `settings` describe, or the recognised one if they are None.

    Raises:
        ConfigError: the settings contradict the model's shapes, or its input is unknown.
    """
    settings = settings or recognise(spec)
    check_input(settings, spec)
    if not reads_task(type(settings), spec):
        raise ConfigError(_no_task(spec, settings.kind))
    of = origin(settings)
    head = opened(of, Head, ConfigError, lambda: settings.open(spec, DecodeOptions.of(detect)))
    if of is not None:
        head = ForeignHead(head, of)
    if head.nms and head.plan is not None:
        with suppress(ConfigError):  # Postprocess reports the error.
            head.plan = with_suppression(head.plan, resolve_labels(spec, head.classes), detect)
    return head


def resolve_labels(spec: ModelSpec, classes: int) -> tuple[str, ...]:
    """The class names: those of the specification, COCO's for 80 classes, or numbered ones.

    Raises:
        ConfigError: the number of names differs from the model's number of classes, or no detector has so many.
    """
    if classes > MOST_CLASSES:
        raise ConfigError(
            f"model {spec.path}: with the declared head, its outputs {listed(spec)} would be of {classes} classes; "
            "declare another head, or none"
        )
    if spec.labels:
        if len(spec.labels) != classes:
            raise ConfigError(
                f"model.labels: {len(spec.labels)} names for a model with {classes} classes ({spec.path}); "
                "give one name per class, in order"
            )
        return spec.labels
    return COCO80 if classes == len(COCO80) else tuple(f"class_{i}" for i in range(classes))
