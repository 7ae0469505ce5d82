"""Opening a classifier's model, and the checks of what it is."""

from __future__ import annotations

from typing import Any

import numpy as np

from streamd.config.classifiers import ClassifierSettings
from streamd.engine import BatchSettings, EngineSettings, open_backend
from streamd.errors import ConfigError, ModelError
from streamd.flow.contracts import Backend
from streamd.heads.classes import ClassScores
from streamd.imaging.crops import PartPicture, bgr_frame
from streamd.types import Frame, Picture


def open_classifier(settings: ClassifierSettings, engine: EngineSettings) -> tuple[Backend[Any], ClassScores]:
    """Opens a classifier's model and checks its shapes. `Backend.start` is called later.

    Args:
        settings: of the classifier.
        engine: of the detector, with one device.

    Raises:
        StreamdError: the model cannot be used; the message names the classifier.
    """
    batch = BatchSettings(max=settings.batch)
    try:
        backend = open_backend((settings.engine or engine).aside(), settings.model, batch=batch)
        try:
            return backend, ClassScores(backend.spec, settings.model.output)
        except BaseException:
            backend.close()
            raise
    except (ConfigError, ModelError) as error:
        raise type(error)(f"classifier {settings.name}: {error}") from error


def settle(backend: Backend[Any], scores: ClassScores, name: str) -> None:
    """Classifies two drawn pictures: finds out what the output is, and allocates what the first batch needs.

    Args:
        backend: started.
        scores: of its model.
        name: of the classifier.

    Raises:
        ConfigError: the output is not what is declared.
    """
    side = max(backend.spec.input_width, backend.spec.input_height)
    grey = np.full((side, side, 3), 128, np.uint8)
    ramp = np.empty_like(grey)
    ramp[...] = np.linspace(0, 255, side).astype(np.uint8)[None, :, None]
    for image in (grey, ramp):
        frame = bgr_frame(Frame("", Picture(_NOTHING, "bgr24", side, side), side, side, 0, 0, 0), image)
        backend.preprocess(backend.slots[0], [frame])
        backend.infer(backend.slots[0])
        outputs: Any = backend.collect(backend.slots[0])
        try:
            scores.settle(outputs)
        except ConfigError as error:
            raise ConfigError(f"classifier {name}: {error}") from error


_NOTHING = PartPicture([])
