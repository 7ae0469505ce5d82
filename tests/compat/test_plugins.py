"""What kinds of other packages build on does not change without a new version of the contract.

`plugins/surface.json` has what there was when it was last recorded, with each part's version. A change by which a kind
that fits no longer would is an error until the part's version has been raised (`contract=` of its registry). Then, and
before a release, record it: `python -m tests.compat.test_plugins`.
"""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from types import FunctionType
from typing import Any

import pytest
from pydantic import BaseModel

from streamd import errors, settings, types
from streamd.analysis.tracking import TrackingSettings, pairing
from streamd.config.foreign import REGISTRIES
from streamd.engine import BatchSettings, EngineSettings, ModelSettings, model
from streamd.flow import contracts
from streamd.heads import DecodeOptions, Head, HeadSettings, common
from streamd.imaging import letterbox, reference
from streamd.sinks import Sink, SinkSettings, envelope, events
from streamd.sources import SourceSettings
from streamd.sources.picture import picture_of

RECORD = Path(__file__).parent / "plugins" / "surface.json"
EVERYWHERE = [settings.Settings, settings.KindSettings, errors.ConfigError]
MODELS = [types.ModelSpec, types.TensorSpec, types.DecodePlan, types.Letterbox, errors.ModelError]
PARTS: dict[str, list[Any]] = {
    "streamd.sources": [
        *(SourceSettings, contracts.Source, contracts.SourceInfo, types.Frame, types.Picture, types.Box, picture_of),
        errors.SourceError,
    ],
    "streamd.engines": [
        *(EngineSettings, BatchSettings, ModelSettings, contracts.Backend, contracts.Slot, model.model_file),
        *(
            model.sha256_of,
            model.settle_spec,
            reference.preprocess,
            letterbox.HostLetterbox,
            types.Frame,
            types.Picture,
        ),
        *(*MODELS, errors.BackendError, errors.FrameError),
    ],
    "streamd.heads": [
        *(HeadSettings, Head, DecodeOptions, types.Candidates, common.as_float32, common.check_single, common.corners),
        *(common.label_boxes, *MODELS),
    ],
    "streamd.trackers": [TrackingSettings, pairing.PairingTracker, pairing.Known, pairing.Seen],
    "streamd.sinks": [
        *(SinkSettings, Sink, envelope.Message, envelope.MessageKind, events.EventSink, events.EventSinkSettings),
        *(events.JournalEvent, errors.SinkError),
    ],
}
"""What docs/extending.md names for each part, and what these take and give."""
Surface = dict[str, str]
MARKS: dict[Any, str] = {
    inspect.Parameter.VAR_POSITIONAL: "*",
    inspect.Parameter.VAR_KEYWORD: "**",
    inspect.Parameter.KEYWORD_ONLY: "named ",
}


def parameters(function: Any) -> str:
    """Names, kinds, and which may be left out; without types, which may become wider."""
    shown = []
    for each in inspect.signature(function).parameters.values():
        star = MARKS.get(each.kind, "")
        shown.append(f"{star}{each.name}{'' if each.default is each.empty else '?'}")
    return f"({', '.join(shown)})"


def surface(of: Any) -> Surface:
    """The members of a class, or the parameters of a function."""
    if isinstance(of, FunctionType):
        return {f"{of.__module__}.{of.__name__}": f"called {parameters(of)}"}
    name = f"{of.__module__}.{of.__qualname__}"
    found: Surface = {name: "class"}
    if issubclass(of, BaseModel):
        found |= {f"{name}.{f}": "field" if i.is_required() else "field?" for f, i in of.model_fields.items()}
    elif hasattr(of, "_fields") or isinstance(of.__init__, FunctionType):
        found[f"{name}()"] = f"called {parameters(of)}"
    for base in reversed(of.__mro__):
        if not base.__module__.startswith("streamd."):
            continue
        for member in {**vars(base), **vars(base).get("__annotations__", {})}:
            if not member.startswith("_") and f"{name}.{member}" not in found:
                value = inspect.getattr_static(of, member, None)
                found[f"{name}.{member}"] = described(getattr(value, "__func__", value))
    return found


def described(value: Any) -> str:
    must = "abstract " if getattr(value, "__isabstractmethod__", False) else ""
    return must + (parameters(value) if isinstance(value, FunctionType) else "value")


def surfaces() -> dict[str, Any]:
    """By part: the version, and what there is."""
    return {
        registry.group: {
            "contract": registry.contract,
            "has": {k: v for each in EVERYWHERE + PARTS[registry.group] for k, v in sorted(surface(each).items())},
        }
        for registry in REGISTRIES
    }


def breaks(before: Surface, now: Surface) -> list[str]:
    """What a kind that fitted no longer fits."""
    found = [f"{name} {was} is {now.get(name, 'gone')}" for name, was in before.items() if not fits(was, now.get(name))]
    demands = ("abstract ", "field")
    new = [name for name in now if name not in before and now[name].startswith(demands) and not now[name].endswith("?")]
    return found + [f"{name} is new, and must be given" for name in new]


def fits(was: str, now: str | None) -> bool:
    """What others call may take more, if that may be left out. What streamd calls may not: it would give it."""
    if was == now or now is None or not was.startswith("called "):
        return was == now
    return now.startswith(was[:-1]) and all(each.strip(" ,)").endswith("?") for each in now[len(was) :].split(", "))


@pytest.mark.parametrize("part", list(PARTS))
def test_a_kind_that_fits_goes_on_fitting(part: str) -> None:
    recorded, now = json.loads(RECORD.read_text())[part], surfaces()[part]
    if now["contract"] == recorded["contract"]:
        found = breaks(recorded["has"], now["has"])
        assert not found, (
            f"raise the contract of {part} above {now['contract']}, if this is meant to be:\n" + "\n".join(found)
        )
    assert now["contract"] == recorded["contract"], "record it: python -m tests.compat.test_plugins"


def test_every_part_is_recorded() -> None:
    assert list(PARTS) == [registry.group for registry in REGISTRIES] == list(json.loads(RECORD.read_text()))


def test_what_breaks_a_kind_is_told_from_what_does_not() -> None:
    before = {"C": "class", "C.open": "(self)", "C.size": "field", "C.kept": "value"}
    assert not breaks(before, {**before, "C.more": "value", "C.poll": "(self)", "C.extra": "field?"})
    assert breaks(before, {**before, "C.open": "(self, device)"}) == ["C.open (self) is (self, device)"]
    assert breaks(before, {**before, "C.new": "abstract (self)"}) == ["C.new is new, and must be given"]
    assert breaks(before, {**before, "C.new": "field"}) == ["C.new is new, and must be given"]
    called = {"f": "called (a, b)"}
    assert not breaks(called, {"f": "called (a, b, c?, named d?)"})
    assert breaks(called, {"f": "called (a, b, c)"}) == ["f called (a, b) is called (a, b, c)"]
    assert breaks(called, {"f": "called (a)"}) == ["f called (a, b) is called (a)"]
    assert breaks(before, {k: v for k, v in before.items() if k != "C.kept"}) == ["C.kept value is gone"]


if __name__ == "__main__":
    RECORD.write_text(json.dumps(surfaces(), indent=1) + "\n")
