#!/usr/bin/python3
"""GStreamer's RTSP server for the tests. Runs with the system's Python, which has the GObject bindings.

usage: rtsp_server.py [--user NAME --password PASSWORD] [--port N] MOUNT=FILE:CODEC…   (CODEC h264, h265, or h264+aac)
Prints the port once it listens.
"""

import argparse

import gi

gi.require_version("Gst", "1.0")
gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstRtspServer  # noqa: E402


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("--user")
    options.add_argument("--password")
    options.add_argument("--port", default="0")
    options.add_argument("mounts", nargs="+")
    args = options.parse_args()
    Gst.init(None)
    server = GstRtspServer.RTSPServer()
    server.set_address("127.0.0.1")
    server.set_service(args.port)
    if args.user:
        auth = GstRtspServer.RTSPAuth()
        token = GstRtspServer.RTSPToken()
        token.set_string("media.factory.role", "user")
        auth.add_basic(GstRtspServer.RTSPAuth.make_basic(args.user, args.password), token)
        server.set_auth(auth)
    for mount in args.mounts:
        name, _, rest = mount.partition("=")
        path, _, codec = rest.rpartition(":")
        factory = GstRtspServer.RTSPMediaFactory()
        codec, _, sound = codec.partition("+")
        parse, pay = {"h264": ("h264parse", "rtph264pay"), "h265": ("h265parse", "rtph265pay")}[codec]
        video = f"queue ! {parse} ! {pay} name=pay0 pt=96 config-interval=-1"
        demux = f"filesrc location={path} ! qtdemux"
        if sound:
            audio = "queue ! aacparse ! rtpmp4gpay name=pay1 pt=97"
            factory.set_launch(f"( {demux} name=d d.video_0 ! {video} d.audio_0 ! {audio} )")
        else:
            factory.set_launch(f"( {demux} ! {video} )")
        if args.user:
            permissions = GstRtspServer.RTSPPermissions()
            permissions.add_permission_for_role("user", "media.factory.access", True)
            permissions.add_permission_for_role("user", "media.factory.construct", True)
            factory.set_permissions(permissions)
        server.get_mount_points().add_factory("/" + name, factory)
    server.attach(None)
    print(server.get_bound_port(), flush=True)
    GLib.MainLoop().run()


main()
