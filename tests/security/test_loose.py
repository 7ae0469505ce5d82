"""Secrets outside of URLs: what is hidden, and which prose stays."""

from __future__ import annotations

import json

import pytest

from streamd.security.names import is_secret, is_secret_option
from streamd.security.redact import credentials, redact


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        # headers
        ("Authorization: Bearer pQ8xAmple", "Authorization: ***"),
        ("sent Proxy-Authorization: Basic YTpi\r\nHost: h", "sent Proxy-Authorization: ***\r\nHost: h"),
        ('Authorization: Digest username="a", response="66f"\nnext', "Authorization: ***\nnext"),
        (
            "headers='Authorization: Bearer ab\\r\\nX-Api-Key: cd\\r\\n', fps=5",
            "headers='Authorization: ***\\r\\nX-Api-Key: ***\\r\\n', fps=5",
        ),
        ("Cookie: session=ab; theme=dark", "Cookie: ***"),
        ("PRIVATE-TOKEN: ab", "PRIVATE-TOKEN: ***"),
        ("{'Authorization': 'Bearer ab', 'Host': 'h'}", "{'Authorization': '***', 'Host': 'h'}"),
        ("answers 401 to Bearer abc123def", "answers 401 to Bearer ***"),
        ("Basic YWRtaW46c2VjcmV0 was refused", "Basic *** was refused"),
        # mappings
        ('{"password": "a b", "user": "u"}', '{"password": "***", "user": "u"}'),
        (json.dumps(json.dumps({"api_key": 'a"b', "n": 1})), json.dumps(json.dumps({"api_key": "***", "n": 1}))),
        ("Login(username='u', password='a, b')", "Login(username='u', password='***')"),
        ("passphrase: hunter22", "passphrase: ***"),
        # options
        ("rtmp://h/app playpath=ab swfUrl=x", "rtmp://h/app playpath=*** swfUrl=x"),
        ("rtmp_playpath=ab rtmp_conn=S:cd rtmp_live=any", "rtmp_playpath=*** rtmp_conn=*** rtmp_live=any"),
        ("cenc_decryption_key=ab, probesize=32", "cenc_decryption_key=***, probesize=32"),
        ("srt_streamid=#!::u=admin,s=ab latency=20", "srt_streamid=*** latency=20"),
        ("ffmpeg -headers 'X: ab' -cryptokey ab -i x", "ffmpeg -headers '***' -cryptokey *** -i x"),
        ("curl --token ab --password=cd", "curl --token *** --password=***"),
        ("password%3Dab%26channel%3D1", "password%3D***%26channel%3D1"),
        ("password=a,b;c", "password=***;c"),
        # prose and names
        ("streams[0].options.password: expected text", "streams[0].options.password: expected text"),
        ("sinks[1].bearer_token: 3 characters are too few", "sinks[1].bearer_token: 3 characters are too few"),
        ("password: it is wrong, or expired", "password: it is wrong, or expired"),
        ("Basic authentication, or Bearer tokens", "Basic authentication, or Bearer tokens"),
        ("WWW-Authenticate: Basic realm=cam", "WWW-Authenticate: Basic realm=cam"),
        ("check url, bearer_token and signing_key", "check url, bearer_token and signing_key"),
        ("--images DIR: not found", "--images DIR: not found"),
        ("100%: done", "100%: done"),
        ("model.path=a.onnx key=3 code=401", "model.path=a.onnx key=3 code=401"),
    ],
)
def test_redaction(text: str, clean: str) -> None:
    assert redact(text) == clean
    assert redact(clean) == clean


def test_names() -> None:
    for name in (
        "password",
        "METRICS_PASSWORD",
        "bearer_token",
        "signing_key",
        "rtmp_playpath",
        "cryptokey",
        "streamid",
    ):
        assert is_secret(name), name
    for name in ("key", "path", "username", "certificate", "probesize", "class_names", "keyframes", "keypoints"):
        assert not is_secret(name), name
    assert is_secret_option("key")
    assert is_secret_option("cookies")
    assert not is_secret_option("rtsp_transport")


def test_the_secrets_of_a_url_in_a_url() -> None:
    for url in (
        "http://proxy:1984/api/stream.mp4?src=rtsp%3A%2F%2Fadmin%3Aexample-pw%40cam%2Fx",
        "http://proxy:1984/api/rtsp%253A%252F%252Fadmin%253Aexample-pw%2540cam",
        "http://proxy:1984/rtsp://admin:example-pw@cam/x",
    ):
        assert "example-pw" in credentials(url), url
