"""What of a URL is hidden and what stays."""

from __future__ import annotations

import pytest

from streamd.security.address import host_of, looks_random, unencoded
from streamd.security.redact import redact


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("rtsp://u:p@h:554/x", "rtsp://***@h:554/x"),
        ("rtsp://u:p@ss@w@h/x", "rtsp://***@h/x"),
        ("rtsp://h/x", "rtsp://h/x"),
        ("http://h/x?user=a&pwd=b&channel=1", "http://h/x?user=***&pwd=***&channel=1"),
        ("srt://h:1?passphrase=longenough1", "srt://h:1?passphrase=***"),
        ("a = b, 3 @ 4", "a = b, 3 @ 4"),
        ("two rtsp://a:b@c and http://d:e@f/g", "two rtsp://***@c and http://***@f/g"),
        ("rtsp://u:p/w?x#y@h/x", "rtsp://***@h/x"),
        ("rtsp://u:12345@h/x", "rtsp://***@h/x"),
        # Who can tell a mail address in a query from a password with a slash, or from the rest of one?
        ("rtsp://h:554/x?at=a@b", "rtsp://***"),
        ("rtsp://[::1]:554/x@y", "rtsp://***@y"),
        ("rtsp://[::1]:554/x", "rtsp://[::1]:554/x"),
        ("udp://@239.0.0.1:1234", "udp://@239.0.0.1:1234"),
        ("http://h/x?user=me@work.example&pwd=x", "http://***"),
        # a password with blanks
        ("rtsp://admin:my secret1@127.0.0.1:9/cam: refused", "rtsp://***@127.0.0.1:9/cam: refused"),
        ("rtsp://admin:1234 5678@127.0.0.1:9/cam: refused", "rtsp://***@127.0.0.1:9/cam: refused"),
        ("rtsp://admin:cut-off", "rtsp://***"),
        # no scheme, or half of one
        ("streams[0].url: admin:secret@h/x is not a file", "streams[0].url: ***@h/x is not a file"),
        ("rtsp:/admin:secret@h/x", "***@h/x"),
        # no delimiters but _
        (
            "rtsp://h/user=admin_password=Qx7example_channel=1_stream=0.sdp?real_stream",
            "rtsp://h/user=***_channel=1_stream=0.sdp?real_stream",
        ),
        ("http://h/v.cgi?loginuse=admin&loginpas=hunter2222", "http://h/v.cgi?loginuse=***&loginpas=***"),
        ("rtsp://h/cam;password=T58e6b3a41", "rtsp://h/cam;password=***"),
        ("http://h/a?p=T3c363836c", "http://h/a?p=***"),
        ("http://h/a?code=T07c342be6&channel=2", "http://h/a?code=***&channel=2"),
        ("http://h/a?password=one&two=three&four", "http://h/a?password=***&***&***"),
        ("rtmp://h/live/mykey", "rtmp://h/live/***"),
        ("http://h/hls/3f2504e0-4f89-11d3-9a0c-0305e82c3301/x.m3u8", "http://h/hls/***/x.m3u8"),
        ("GET /x?token=abc HTTP/1.1", "GET /x?token=*** HTTP/1.1"),
        # a URL that is percent-encoded as a whole
        ("src=rtsp%3A%2F%2Fadmin%3Apw%40cam%2Fx: 404", "src=rtsp%3A%2F%2F***: 404"),
        ("rtsp%253a%252f%252fadmin%253apw%2540cam, twice", "rtsp%253a%252f%252f***, twice"),
        ("'http%3A%2F%2Fh%2Fx%3Ftoken%3Dabc%26channel%3D1'", "'http%3A%2F%2F***'"),
        ("rtsp:%2f%2fadmin:pw%40cam/x", "rtsp:%2f%2f***"),
        ("http://h/api/rtsp%3A%2F%2Fadmin%3Apw%40cam%2Fx", "http://h/api/***"),
        ("rtsp%3A%2F%2Fcam%3A554%2FStreaming%2FChannels%2F101", "rtsp%3A%2F%2Fcam%3A554%2FStreaming%2FChannels%2F101"),
        # a login in the path
        ("rtsp://h/0/admin:secretword/main", "rtsp://h/0/admin:***/***"),
        ("rtsp://h/0/usr:pa/ss:word/av0: 404", "rtsp://h/0/usr:***/***/***: 404"),
        ("rtsp://h/live/admin/secretword/1", "rtsp://h/live/admin/***/1"),
        ("http://h/User/secretword/media.mjpg", "http://h/User/***/media.mjpg"),
        ("https://h:8123/api/webhook/the-gate-at-home: 404", "https://h:8123/api/webhook/***: 404"),
        ("https://h/api/webhooks/17/some-words/x", "https://h/api/webhooks/***/***/***"),
        ("https://h/bot123456:abc-def/sendMessage", "https://h/bot123456:***/***"),
        ("https://h/live/key/mykey", "https://h/live/key/***"),
        # what stays
        (
            "http://h/admin/media.mjpg and http://h/root/live/ch01",
            "http://h/admin/media.mjpg and http://h/root/live/ch01",
        ),
        ("rtsp://h/live/trackID:1/12:30", "rtsp://h/live/trackID:1/12:30"),
        ("tcp://*:5555 or tcp://HOST:PORT", "tcp://*:5555 or tcp://HOST:PORT"),
        ("ipc:///tmp/tmpab12cd3e/z", "ipc:///tmp/tmpab12cd3e/z"),
        ("see http://127.0.0.1:9188/metrics.", "see http://127.0.0.1:9188/metrics."),
        ("max_fps=5, keyframe=1", "max_fps=5, keyframe=1"),
    ],
)
def test_redaction(text: str, clean: str) -> None:
    assert redact(text) == clean


@pytest.mark.parametrize(
    "path",
    [
        "/Streaming/Channels/101",
        "/h264Preview_01_main",
        "/cam/realmonitor?channel=1&subtype=0",
        "/ISAPI/Streaming/channels/102/httpPreview",
        "/onvif/profile2/media.smp",
        "/axis-media/media.amp?videocodec=h264&resolution=640x480&fps=5",
        "/live/ch00_0",
        "/videoMain",
        "/11",
        "/MediaInput/h264/stream_1",
        "/cgi-bin/mjpg/video.cgi?channel=0&subtype=1",
        "/live.sdp",
        "/unicast/c1/s0/live",
        "/Front_Door_Camera2",
    ],
)
def test_the_paths_of_cameras_stay(path: str) -> None:
    assert redact(f"rtsp://10.0.0.7:554{path}: refused") == f"rtsp://10.0.0.7:554{path}: refused"


def test_what_looks_random() -> None:
    for token in (
        "86f7e437f",
        "T27d5482ee",
        "deadbeef01",
        "aGVsbG9Xb3JsZEZvb0Jhcg",
        "abcd-e1f2-gh3i-j4kl-m5no",
        "1" * 12,
    ):
        assert looks_random(token), token
    for name in (
        "Streaming",
        "h264Preview_01_main",
        "1080p",
        "profile_1",
        "20251101",
        "camera-front-door",
        "HTTPPreview",
    ):
        assert not looks_random(name), name


@pytest.mark.parametrize(
    ("url", "character"),
    [
        ("rtsp://admin:pa/ss@h/x", "/"),
        ("rtsp://admin:pa#ss@h/x", "#"),
        ("rtsp://admin:pa?ss@h:554/x", "?"),
        ("rtsp://admin:pa%2Fss@h/x", None),
        ("rtsp://admin:p@ss@h/x", None),
        ("http://h:80/x?mail=a@b", None),
        ("http://h/x", None),
        ("clip.mp4", None),
    ],
)
def test_a_raw_delimiter_in_a_password_is_named(url: str, character: str | None) -> None:
    assert unencoded(url) == character


@pytest.mark.parametrize(
    ("url", "host"),
    [
        ("rtsp://u:p@cam:554/x", ("cam", 554)),
        ("rtsp://u:p/w@cam/x", ("cam", None)),
        ("rtsp://u:[x@[::1]:80/x", ("::1", 80)),
        ("rtsp://cam:99999/x", ("cam", None)),
        ("rtsp://fe]80[/x", (None, None)),
        ("clip.mp4", (None, None)),
    ],
)
def test_the_host_of_any_url(url: str, host: tuple[str | None, int | None]) -> None:
    assert host_of(url) == host
