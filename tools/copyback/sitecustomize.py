"""On PYTHONPATH, makes hardware decoders hand their frames to the host, so that `gpu_suite.py copyback` can measure it.

streamd itself has no such setting: nobody would want it. Python imports this file at its start, also in the worker
processes; it changes two names in memory and nothing else.
"""

from __future__ import annotations

import contextlib
import importlib
import pkgutil
from typing import Any

import av.codec.hwaccel

from streamd.sources import frame_maker
from streamd.sources.picture import picture_of

# Modules of PyAV that were loaded later would miss the class.
for module in pkgutil.walk_packages(av.__path__, "av."):
    if module.name != "av.__main__":
        with contextlib.suppress(ImportError):
            importlib.import_module(module.name)
_accelerator = av.codec.hwaccel.HWAccel


def _copying(*args: Any, **options: Any) -> Any:
    return _accelerator(*args, **options | {"is_hw_owned": False})


def _on_the_host(native: Any, **options: Any) -> Any:
    return picture_of(native, **options | {"device": None})


av.codec.hwaccel.HWAccel = _copying  # type: ignore[assignment, misc]
assert vars(frame_maker)["picture_of"] is picture_of  # where frames are made
vars(frame_maker)["picture_of"] = _on_the_host
