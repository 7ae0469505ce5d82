"""FFmpeg's errors in words that lead to the cause."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from streamd.errors import SourceError
from streamd.sources.av_errors import describe, is_network, translate
from streamd.sources.files import check_file


def _translated(error: OSError, url: str, *, live: bool) -> tuple[str, str, bool]:
    told = translate(error, url, opening=True, live=live, waited_s=0.1, limit_s=10)
    return told.reason, str(told), told.permanent


def test_an_address_that_ffmpeg_refuses_points_at_the_address() -> None:
    error = OSError(errno.EINVAL, "Invalid argument")
    reason, text, permanent = _translated(error, "rtsp://admin:geheim@cam:99999/x", live=True)
    assert (reason, permanent) == ("unsupported", False)
    assert "scheme and port" in text
    assert "percent-encoded" in text
    assert "is a video" not in text
    assert "geheim" not in text


def test_a_raw_delimiter_in_the_password_is_named() -> None:
    error = OSError(errno.EINVAL, "Invalid argument")
    _, text, _ = _translated(error, "rtsp://admin:gehei/m1@cam/x", live=True)
    assert text == (
        "rtsp://***@cam/x: the address cannot be used: there is a raw / in the password; percent-encode it "
        "(Invalid argument)"
    )


def test_a_file_that_ffmpeg_refuses_is_no_video() -> None:
    reason, text, permanent = _translated(OSError(errno.EINVAL, "Invalid argument"), "/clips/x.mp4", live=False)
    assert (reason, permanent) == ("unsupported", True)
    assert "scheme" not in text


@pytest.mark.parametrize("url", ["rtsp://u:[x@cam/x", "rtsp://cam]/x"])
def test_a_url_that_nobody_can_read_is_still_translated(url: str) -> None:
    assert _translated(OSError(errno.EIO, "I/O error"), url, live=True)[0] in ("dns", "disconnected")


def test_what_is_a_network() -> None:
    assert [is_network(url) for url in ("rtsp://h/x", "http://h", "file:///x", "x.mp4", "/dev/video0")] == [
        True, True, False, False, False,
    ]  # fmt: skip


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO, errno.ESTALE, errno.EBUSY])
def test_what_the_system_lacks_now_is_never_permanent(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reason, text, permanent = _translated(OSError(number, os.strerror(number)), "/clips/x.mp4", live=False)
    assert not permanent
    assert reason in ("internal", "disconnected", "refused")
    assert "not valid video" not in text

    clip = tmp_path / "x.mp4"
    clip.write_bytes(b"x")

    def refuse(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(SourceError) as caught:
        check_file(str(clip))
    assert not caught.value.permanent
    assert "check the path" not in str(caught.value)


def test_an_error_of_the_network_is_not_told_as_one_of_the_disk() -> None:
    _, text, permanent = _translated(OSError(errno.EIO, "Input/output error"), "rtsp://127.0.0.1:9/x", live=True)
    assert not permanent
    assert "disk" not in text


def test_what_the_system_says_is_told_once() -> None:
    assert describe("rtsp://h/x", "refused", "Connection refused").endswith("and that the camera is on")
    assert describe("rtsp://h/x", "refused", "Server returned 429").endswith("is on (Server returned 429)")
    assert describe("rtsp://h/x", "eof") == "rtsp://h/x: the stream ended"
