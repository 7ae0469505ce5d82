"""What the kernel tells of a camera's connection that nobody reads."""

from __future__ import annotations

import socket
import time

from streamd.sources.wire import Unread


def test_it_counts_what_has_arrived_until_it_is_read() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"rtsp://user:secret@127.0.0.1:{server.getsockname()[1]}/camera"
        with socket.create_connection(server.getsockname()) as ours:
            theirs, _ = server.accept()
            with theirs:
                unread = Unread(url, tcp=True)
                assert unread.bytes() == 0
                theirs.sendall(b"x" * 5000)
                deadline = time.monotonic() + 5
                while unread.bytes() != 5000:
                    assert time.monotonic() < deadline
                assert len(ours.recv(3000)) == 3000
                assert unread.bytes() == 2000
        assert unread.bytes() is None, "closed"
        with socket.create_connection(server.getsockname()):
            assert unread.bytes() is None, "another connection"


def test_of_several_streams_of_one_recorder_one_that_nobody_reads_does_not_count_for_the_others() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = server.getsockname()
        with (
            socket.create_connection(address), server.accept()[0] as stuck,
            socket.create_connection(address), server.accept()[0] as other,
        ):  # fmt: skip
            unread = Unread(f"rtsp://127.0.0.1:{address[1]}/2", tcp=True)
            stuck.sendall(b"x" * 5000)
            time.sleep(0.05)
            assert unread.bytes() == 0
            other.sendall(b"x" * 100)
            deadline = time.monotonic() + 5
            while unread.bytes() != 100:
                assert time.monotonic() < deadline


def test_what_is_no_tcp_connection_to_that_camera_is_unknown() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()):
        port = server.getsockname()[1]
        assert Unread(f"rtmp://127.0.0.1:{port}/x", tcp=False).bytes() == 0
        assert Unread(f"rtsp://127.0.0.1:{port}/x", tcp=False).bytes() is None, "only its control connection"
        for url in (
            f"rtsp://127.0.0.2:{port}/x",
            "rtsp://127.0.0.1:1/x",
            f"udp://127.0.0.1:{port}",
            "/dev/video0",
            "rtsp://[/",
        ):
            assert Unread(url, tcp=True).bytes() is None, url
