"""Running the command line as its users do: in separate processes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

SMALL = "models/yolov5lite_e_relu_320.onnx"


def streamd(*arguments: str | Path, timeout: float = 60, **kw: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "streamd", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, **kw)


def config(folder: Path, text: str, name: str = "c.yaml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def null(streams: str = "[{id: a, kind: synthetic, fps: 100, count: 20}]", more: str = "") -> str:
    return f"model: {{path: none}}\nengine: {{kind: 'null'}}\nmetrics: {{listen: null}}\nstreams: {streams}\n{more}\n"


def one_message(text: str) -> str:
    """The single line in which the command said what was wrong."""
    lines = [line for line in text.splitlines() if not line.startswith("{")]
    assert len(lines) == 1, text
    assert "Traceback" not in text
    return lines[0]
