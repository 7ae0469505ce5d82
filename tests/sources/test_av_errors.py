"""FFmpeg's errors in words that lead to the cause."""

from __future__ import annotations

import errno

import pytest

from streamd.sources.av_errors import is_network, translate


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
