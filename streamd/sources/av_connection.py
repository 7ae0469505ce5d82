"""The connection of a source to its input: connecting, probing, closing; and the decoder, which may outlive it."""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, cast

from streamd.errors import SourceError
from streamd.flow.contracts import SourceInfo
from streamd.security.redact import redact
from streamd.sources.admission import Admission
from streamd.sources.av_errors import translate
from streamd.sources.av_open import WHOLE, InputKind, Part, kind_of, open_container, tracks_apart, video_stream
from streamd.sources.closing import deferred, shelf
from streamd.sources.files import check_file
from streamd.sources.hardware import HardwareDecoder, video_of
from streamd.sources.part_search import search_of
from streamd.sources.read_limit import ReadLimit
from streamd.sources.redirects import OpeningListener
from streamd.sources.search import PartSearch
from streamd.sources.second_opinion import NO_DECODER, is_external

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.codeccontext import VideoCodecContext
    from av.video.stream import VideoStream

    from streamd.sources.av import AvStreamSettings

HUNG_S = 5.0
"""A call that FFmpeg has not ended this long after its limit will never end."""
FILE_LIMIT_S = 60.0
"""Timeout for opening a file, or reading from a file system."""


class AvConnection:
    """An input that is opened and closed, for stills again and again. For the thread that reads, except `deadline` and
    `admission.leave`.

    Args:
        settings: the stream.
        closed: ends every wait.
        alone: no other stream is read by this process.
    """

    kind: InputKind
    """Known once it is open."""

    def __init__(self, settings: AvStreamSettings, closed: threading.Event, *, alone: bool) -> None:
        self.settings = settings
        self.network = settings.live
        """It has time limits and is retried; a file on a disk is not."""
        self.admission = Admission(settings.id, self.network, closed)
        self.container: InputContainer | None = None
        self.stream: VideoStream | None = None
        self.decoder: HardwareDecoder | VideoCodecContext | None = None
        """None for that of `stream`, in software."""
        self._recoded: VideoCodecContext | None = None
        """The decoder of a later codec."""
        self.limit: ReadLimit | None = None
        """None where FFmpeg's own stays as it is."""
        self.broke = False
        """The input has ended, and the decoder is as good as before."""
        self.lost = 0
        """RTP packets lost while it was opened."""
        self.begin = self.end = 0
        """The bytes of a file from which and up to which it is opened; 0: to its end. See `parts`."""
        self.parts: PartSearch | None = None
        """Looks for where a file goes on with another video."""
        self.opened_ns = self.waited_ns = 0
        """When it was open, monotonic, and how long that took."""
        self.deadline = math.inf
        """See `Source.deadline`; set around each call to FFmpeg."""
        self.closed = closed
        """Ends every wait."""
        self._alone = alone
        self._device: int | None = None

    def check_file(self) -> None:
        """Checks the file to open, and looks where its first part ends. Raises: see `files.check_file`."""
        path = self.settings.url.removeprefix("file:")
        with self.limited():
            check_file(path)
        self.parts = search_of(path, self.closed.is_set, self.limited)

    @contextlib.contextmanager
    def limited(self, limit_s: float = FILE_LIMIT_S) -> Iterator[None]:
        """For an access beside the container, such as to a file without FFmpeg: it has to return in time, too."""
        before = self.deadline
        self.deadline = min(before, time.monotonic() + limit_s)
        try:
            yield
        finally:
            self.deadline = before

    def open(self, device: int | None) -> SourceInfo:
        """Connects and probes.

        Args:
            device: CUDA device whose decoder is used; None for software.

        Raises:
            SourceError: with the reason; it is closed.
        """
        self._device, self.lost = device, 0
        kept = shelf.take(self.settings.id, device) if device is not None else None
        info = self._connect(kept)
        if kept is None or self.decoder is kept:
            return info
        # Another video than before: it needs a decoder of its own.
        self.close()
        return self._connect(None)

    def _connect(self, kept: HardwareDecoder | None) -> SourceInfo:
        """Opens the input. `kept`: a decoder for it, if it still shows the same video."""
        settings, device = self.settings, self._device
        created = device if kept is None else None
        self.admission.enter(created)
        started = time.monotonic()
        ear = OpeningListener(self.network, settings.open_timeout_s)
        # The limit applies to connecting and to probing separately.
        self.deadline = started + (2 * settings.open_timeout_s + HUNG_S if self.network else FILE_LIMIT_S)
        try:
            with ear:
                container = self._opened(ear, created)
        except Exception as error:  # noqa: BLE001 - PyAV raises many kinds, which are translated in one place
            self.admission.leave()
            if kept is not None and device is not None:
                shelf.put(settings.id, kept, device)
            ear.check(settings.url)
            raise self._translate(error, started) from None
        finally:
            self.deadline = math.inf
        self.container = container
        self.limit = None if self._alone else ReadLimit.of(container, started)
        self.admission.connected()
        waited = time.monotonic() - started
        self.opened_ns, self.waited_ns = time.monotonic_ns(), int(waited * 1e9)
        self.lost += ear.take()
        try:
            return self._probe(container, waited, kept)
        except BaseException:
            self.close()
            ear.check(settings.url)
            raise

    def _opened(self, ear: OpeningListener, device: int | None) -> InputContainer:
        """Opens it with FFmpeg; once more, asking the server not to close the connection, where that made it fail."""
        import av

        part, once = self._part(), "multiple_requests" in self.settings.options
        try:
            container = open_container(self.settings, live=self.network, device=device, part=part)
        except av.InvalidDataError:
            if once or not ear.hung_up:
                raise
        else:
            if once or not ear.hung_up:
                return container
            container.close()
        self.deadline += 2 * self.settings.open_timeout_s
        return open_container(self.settings, live=self.network, device=device, part=part, lasting=True)

    def _part(self) -> Part:
        """What is opened of a file."""
        parts = self.parts
        self.end = parts.start(self.begin) if parts is not None else 0
        if parts is None or not (self.begin or self.end):
            return WHOLE
        return Part(self.begin, self.end, parts.format)

    def _probe(self, container: InputContainer, waited: float, kept: HardwareDecoder | None) -> SourceInfo:
        settings = self.settings
        stream = video_stream(container, settings, live=self.network, waited_s=waited)
        context = stream.codec_context
        if kept is not None and kept.video == video_of(context):
            kept.flush_buffers()
            self.decoder = kept
        elif kept is not None:
            deferred.close(kept)
        elif self._device is not None:
            self.decoder = HardwareDecoder(context)
        self._prepare(context)
        self.stream, self.kind = stream, kind_of(container, settings)
        if not self.network and not self.begin and settings.track is None and len(container.streams.video) > 1:
            self._tell_of_others(stream)
        return SourceInfo(
            codec=context.name,
            decoder="software" if self._device is None else "nvdec",
            width=stream.width,
            height=stream.height,
            fps=round(float(stream.average_rate or stream.guessed_rate or 0), 3),
            live=self.kind.live,
            still=self.kind.still,
        )

    def _tell_of_others(self, stream: VideoStream) -> None:
        assert self.container is not None
        if not (apart := tracks_apart(self.container, stream)):
            return
        text = "video tracks that are shown before or after this one are not read; use a stream for each, with `track`"
        self.warn(text, track=list(self.container.streams.video).index(stream), not_read=apart)

    def warn(self, event: str, **facts: Any) -> None:
        """Logs a warning about the stream."""
        import structlog  # here: a decoder process hardly ever needs it, and it takes a third of its start-up time

        structlog.get_logger(__name__).warning(event, stream=self.settings.id, **facts)

    def _translate(self, error: BaseException, started: float) -> SourceError:
        """Why opening failed."""
        url = self.settings.url
        if isinstance(error, SourceError):
            return error
        if self._device is not None and isinstance(error, (RuntimeError, NotImplementedError)):
            return SourceError("decoder", redact(f"{url}: the GPU decoder rejected it ({error})"), permanent=True)
        if self._device is not None and is_external(error):
            return SourceError("decoder", redact(f"{url}: {NO_DECODER} ({error})"))
        return translate(
            error, url, opening=True, live=self.network,
            waited_s=time.monotonic() - started, limit_s=self.settings.open_timeout_s,
        )  # fmt: skip

    @property
    def using(self) -> HardwareDecoder | VideoCodecContext:
        """The decoder of an open connection."""
        return self.decoder or self.context

    @property
    def context(self) -> VideoCodecContext:
        """Describes the video."""
        assert self.stream is not None
        return self._recoded or self.stream.codec_context

    def recode(self, codec: str) -> None:
        """The video goes on with another codec: a new decoder, in software.

        Args:
            codec: FFmpeg's name.
        """
        import av

        self.decoder = self._recoded = cast("VideoCodecContext", av.CodecContext.create(codec, "r"))
        self._prepare(self._recoded)

    def _prepare(self, context: VideoCodecContext) -> None:
        settings = self.settings
        # A hardware decoder needs no threads; FFmpeg would start one for each core, up to sixteen a stream.
        context.thread_count = settings.decoder_threads if self._device is None else 1
        if settings.frames == "key":
            context.skip_frame = "NONKEY"
        context.copy_opaque = True

    def close(self) -> None:
        """Closes it; the decoder of a camera that broke off is kept for its next connection. Idempotent."""
        self.admission.leave()
        container, self.container, self.stream = self.container, None, None
        if self.limit is not None:
            self.limit.end()
            self.limit = None
        decoder, self.decoder = cast("HardwareDecoder | None", self.decoder), None
        if decoder is not None and self._device is not None:
            if self.network and self.broke and not self.closed.is_set():
                shelf.put(self.settings.id, decoder, self._device)
            else:
                deferred.close(decoder)
        self.broke, self._recoded = False, None
        del decoder
        if container is not None and self.closed.is_set() and self._device is not None:
            deferred.close(container)
        elif container is not None:
            with contextlib.suppress(Exception):
                container.close()
