"""The source room: what turns a URL into frames.

A source is one small contract, `streamd.flow.contracts.Source`: it opens, yields frames, raises, and closes. It never
retries; the stream's runner in `flow.runner` owns its life. To add a kind: one file here with its settings, which
`SOURCES.register` decorates and whose `open` makes the source; `tests/sources/test_contract.py` runs over it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from streamd.flow.contracts import Source
from streamd.flow.packets import PacketSink
from streamd.flow.settings import StreamSettings
from streamd.settings import Settings
from streamd.settings.plugins import origin
from streamd.settings.registry import Registry
from streamd.sources.foreign import ForeignSource


class CropSettings(Settings):
    """The part of the upright picture to analyse, in pixels. Boxes are still published in whole-picture pixels."""

    x: int = Field(ge=0, description="Left edge, in pixels.")
    y: int = Field(ge=0, description="Top edge, in pixels.")
    width: int = Field(ge=16, description="Width, in pixels.")
    height: int = Field(ge=16, description="Height, in pixels.")


class SourceSettings(StreamSettings):
    """What every source has."""

    crop: CropSettings | None = Field(None, description="Part of the picture to analyse. Default: all of it.")
    max_fps: float | None = Field(
        None,
        ge=0.00001,
        le=1000,
        description="Largest number of frames analysed per second. Well below the camera's rate, pictures that no "
        "other picture depends on are not decoded; where key frames come often enough, only these are. Default: "
        "every frame.",
    )

    def open(self, *, device: int | None = None, held: int = 8) -> Source:
        """Makes the source; nothing is connected yet.

        Args:
            device: CUDA device whose decoder hands frames over without a copy; None for software.
            held: pictures that may be held beside the ring at the same time.
        """
        raise NotImplementedError

    def open_recorded(self, packets: PacketSink, *, device: int | None = None, held: int = 8) -> Source:
        """Makes a source that also hands its compressed packets over, where it has any (`has_packets`)."""
        return self.open(device=device, held=held)


SOURCES: Registry[SourceSettings] = Registry("stream", SourceSettings, "streamd.sources", default="av", contract=1)

if TYPE_CHECKING:
    StreamConfig = SourceSettings
else:
    StreamConfig = SOURCES.one_of()


def open_source(
    settings: SourceSettings, *, device: int | None = None, held: int = 8, packets: PacketSink | None = None
) -> Source:
    """Makes the source that `settings` describes; see `SourceSettings.open`.

    Raises:
        SourceError: its package is at fault.
    """
    if (of := origin(settings)) is not None:
        return ForeignSource(settings.id, of, lambda: settings.open(device=device, held=held))
    if packets is not None:
        return settings.open_recorded(packets, device=device, held=held)
    return settings.open(device=device, held=held)
