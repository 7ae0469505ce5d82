"""Draws the Grafana dashboard from the data of a Prometheus server, as one page: for pictures without Grafana.

All numbers come from the dashboard's own queries; only the drawing is done here. Supports the panels of the dashboard's
first rows: stat, timeseries, state-timeline, heatmap."""

from __future__ import annotations

import html
import json
import math
import time
import urllib.parse
import urllib.request
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

CELL = 60, 28
"""Pixels of a cell of Grafana's grid."""
GAP = 8
COLORS = ("#73bf69", "#f2cc0c", "#8ab8ff", "#ff780a", "#f2495c", "#5794f2", "#b877d9", "#70dbed", "#fade2a", "#ffa6b0")
NAMED = {"green": "#73bf69", "yellow": "#f2cc0c", "orange": "#ff9830", "red": "#f2495c", "blue": "#5794f2",
         "text": "#ccccdc"}  # fmt: skip
STYLE = """
body { margin: 0; background: #111217; color: #ccccdc; font: 12px system-ui, "DejaVu Sans", sans-serif; }
main { position: relative; }
section { position: absolute; box-sizing: border-box; background: #181b1f; border: 1px solid #25282d;
  border-radius: 3px; padding: 8px 10px; overflow: hidden; container-type: inline-size; }
h1 { position: absolute; margin: 0; font-size: 14px; font-weight: 600; }
h2 { margin: 0 0 4px; font-size: 12px; font-weight: 600; white-space: nowrap; }
.stat { margin: 14px 0 0; font-size: min(28px, 15cqw); font-weight: 600; text-align: center;
  white-space: nowrap; }
svg { display: block; overflow: visible; } text { fill: #9aa0aa; font-size: 10px; }
.legend { line-height: 15px; max-height: 30px; color: #b4b8c0; font-size: 10px; overflow: hidden; }
.legend span { display: inline-block; white-space: nowrap; }
.legend i { display: inline-block; width: 10px; height: 3px; margin: 0 4px 3px 8px; }
"""
RATES = {"fps": "fps", "cps": "c/s", "pps": "p/s"}
Series = tuple[str, list[tuple[float, float]]]


class Prometheus:
    """Queries a time span.

    Args:
        address: http://HOST:PORT.
        span_s: seconds until now.
        step_s: seconds between two points.
    """

    def __init__(self, address: str, span_s: float, step_s: float) -> None:
        self._address, self._step = address, step_s
        self.end = time.time()
        self.begin = self.end - span_s

    def series(self, expression: str, legend: str) -> list[Series]:
        """(name, [(unix time, value), …]) of each series; values that are not numbers are left out."""
        for name, value in (("$__rate_interval", "15s"), ('"$instance"', '".*"'), ('"$stream"', '".*"')):
            expression = expression.replace(name, value)
        asked = {"query": expression, "start": self.begin, "end": self.end, "step": self._step}
        url = f"{self._address}/api/v1/query_range?{urllib.parse.urlencode(asked)}"
        with urllib.request.urlopen(url, timeout=30) as answer:  # noqa: S310 - http by our own hand
            found = json.load(answer)["data"]["result"]
        out = []
        for each in found:
            name = legend
            for label, text in each["metric"].items():
                name = name.replace(f"{{{{{label}}}}}", text)
            points = [(float(at), float(v)) for at, v in each["values"]]
            out.append((name, [(at, v) for at, v in points if math.isfinite(v)]))
        return sorted(out)


def shown(value: float, unit: str) -> str:
    """A value, formatted approximately as by Grafana."""
    if unit == "s":
        return f"{value * 1000:.3g} ms" if value < 1 else f"{value:.3g} s"
    if unit == "percentunit":
        return f"{value * 100:.3g} %"
    if unit == "dateTimeFromNow":
        return f"{max(0, time.time() - value / 1000) / 60:.0f} min ago"
    text = f"{value:.3g}" if value < 1000 else f"{value:,.0f}"
    return f"{text} {RATES[unit]}" if unit in RATES else text


def stat(panel: Mapping[str, Any], series: Sequence[Series], _: Prometheus, __: tuple[int, int]) -> str:
    """The last value."""
    values = [points[-1][1] for _, points in series if points]
    if not values:
        return '<p class="stat">No data</p>'
    steps = panel["fieldConfig"]["defaults"]["thresholds"]["steps"]
    color = [s["color"] for s in steps if s["value"] is None or values[0] >= s["value"]][-1]
    text = html.escape(shown(values[0], panel["fieldConfig"]["defaults"]["unit"]))
    return f'<p class="stat" style="color: {NAMED[color]}">{text}</p>'


def _axis(span: Prometheus, at: float, left: int, width: int) -> float:
    return left + (at - span.begin) / (span.end - span.begin) * (width - left)


def _clock(span: Prometheus, left: int, size: tuple[int, int]) -> str:
    marks = [span.begin + (span.end - span.begin) * i / 4 for i in range(1, 4)]
    return "".join(
        f'<text x="{_axis(span, at, left, size[0]):.0f}" y="{size[1]}" text-anchor="middle">'
        f"{time.strftime('%H:%M:%S', time.localtime(at))}</text>"
        for at in marks
    )


def _legend(names: Sequence[str]) -> str:
    return _key((COLORS[i % len(COLORS)], name) for i, name in enumerate(names))


def _key(entries: Iterable[tuple[str, str]]) -> str:
    """Colours and what they stand for."""
    marks = (f'<span><i style="background: {color}"></i>{html.escape(name)}</span>' for color, name in entries)
    return f'<div class="legend">{" ".join(marks)}</div>'


def step_of(top: float, most: int = 4) -> float:
    """The distance of an axis's marks: a round number, so that at most so many of them reach `top`."""
    least = top / most or 1.0
    power = 10.0 ** math.floor(math.log10(least))
    return next(round_ * power for round_ in (1, 2, 2.5, 5, 10) if round_ * power >= least * 0.999)


def lines(panel: Mapping[str, Any], series: Sequence[Series], span: Prometheus, size: tuple[int, int]) -> str:
    """Lines, or a stack of them."""
    width, height, left = size[0], size[1] - 34, 54
    unit = panel["fieldConfig"]["defaults"]["unit"]
    stacked = "stacking" in panel["fieldConfig"]["defaults"].get("custom", {})
    base: dict[float, float] = {}
    drawn: list[list[tuple[float, float]]] = []
    for _, points in series:
        line = [(at, v + base.get(at, 0.0)) if stacked else (at, v) for at, v in points]
        base |= dict(line)
        drawn.append(line)
    top = max((v for line in drawn for _, v in line), default=0.0)
    step = step_of(top)
    marks = max(1, math.ceil(top / step - 0.001))
    top = step * marks
    out = []
    for i in range(marks + 1):
        y = 8 + (height - 22) * (1 - i / marks)
        out.append(f'<path d="M{left} {y:.1f}H{width}" stroke="#2a2d33"/><text x="{left - 6}" y="{y + 3:.1f}" '
                   f'text-anchor="end">{shown(step * i, unit)}</text>')  # fmt: skip
    for i, line in enumerate(drawn):
        at = [(_axis(span, t, left, width), 8 + (height - 22) * (1 - v / top)) for t, v in line]
        path = "L".join(f"{x:.1f} {y:.1f}" for x, y in at)
        out.append(
            f'<path d="M{path}" fill="none" stroke="{COLORS[i % len(COLORS)]}" stroke-width="1.4"/>' if at else ""
        )
    picture = f'<svg width="{width}" height="{height}">{"".join(out)}{_clock(span, left, (width, height))}</svg>'
    return picture + _legend([name for name, _ in series])


def states(panel: Mapping[str, Any], series: Sequence[Series], span: Prometheus, size: tuple[int, int]) -> str:
    """A bar for each stream, coloured by its state."""
    words = panel["fieldConfig"]["defaults"]["mappings"][0]["options"]
    width, height, left = size[0], size[1] - 26, 84
    row = (height - 16) / max(1, len(series))
    out = []
    for i, (name, points) in enumerate(series):
        middle = row * (i + 0.5)
        out.append(f'<text x="{left - 8}" y="{middle + 3:.1f}" text-anchor="end">{html.escape(name)}</text>')
        for (at, value), (then, _) in zip(points, [*points[1:], (span.end, 0.0)], strict=True):
            word = words.get(str(int(value)))
            if word is None:
                continue
            x, end = _axis(span, at, left, width), _axis(span, then, left, width)
            out.append(f'<rect x="{x:.1f}" y="{row * i + 2:.1f}" width="{end - x + 0.5:.1f}" height="{row - 4:.1f}" '
                       f'fill="{NAMED[word["color"]]}"/>')  # fmt: skip
    picture = f'<svg width="{width}" height="{height}">{"".join(out)}{_clock(span, left, (width, height))}</svg>'
    return picture + _key((NAMED[word["color"]], word["text"]) for word in words.values())


def heatmap(_: Mapping[str, Any], series: Sequence[Series], span: Prometheus, size: tuple[int, int]) -> str:
    """Frames by latency bucket and time: dark for none, light for many."""
    width, height, left = size[0], size[1] - 22, 54
    bounds = sorted(((float(name), dict(points)) for name, points in series), key=lambda each: each[0])
    rows = [(high, {at: max(0.0, n - (low.get(at, 0.0))) for at, n in points.items()})
            for (high, points), (_, low) in zip(bounds, [(0.0, {}), *bounds[:-1]], strict=True)]  # fmt: skip
    used = [i for i, (_, cells) in enumerate(rows) if any(cells.values())]
    rows = rows[used[0] : used[-1] + 1] if used else []
    top = max((n for _, cells in rows for n in cells.values()), default=1.0) or 1.0
    times = sorted({at for _, cells in rows for at in cells})
    tall = (height - 16) / max(1, len(rows))
    wide = (width - left) / max(1, len(times))
    out = []
    for i, (bound, cells) in enumerate(rows):
        y = height - 16 - tall * (i + 1)
        if math.isfinite(bound) and i % math.ceil(11 / tall) == 0:
            out.append(f'<text x="{left - 6}" y="{y + 8:.1f}" text-anchor="end">{shown(bound, "s")}</text>')
        for at, n in cells.items():
            x = max(left + wide, _axis(span, at, left, width))
            out.append(f'<rect x="{x - wide:.1f}" y="{y:.1f}" width="{wide:.1f}" height="{tall:.1f}" fill="#5794f2" '
                       f'opacity="{(n / top) ** 0.5:.2f}"/>' if n else "")  # fmt: skip
    return f'<svg width="{width}" height="{height}">{"".join(out)}{_clock(span, left, (width, height))}</svg>'


KINDS = {"stat": stat, "timeseries": lines, "state-timeline": states, "heatmap": heatmap}


def page(dashboard: Mapping[str, Any], span: Prometheus, height: int) -> str:
    """As much of the dashboard as fits into `height` pixels, as HTML."""
    parts = []
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        x, y = place["x"] * CELL[0], place["y"] * CELL[1]
        if y + place["h"] * CELL[1] > height:
            break
        title = html.escape(panel["title"])
        if panel["type"] == "row":
            parts.append(f'<h1 style="left: 12px; top: {y + 8}px">{title}</h1>')
            continue
        wide, high = place["w"] * CELL[0] - GAP, place["h"] * CELL[1] - GAP
        series = [s for t in panel["targets"] for s in span.series(t["expr"], t["legendFormat"])]
        body = KINDS[panel["type"]](panel, series, span, (wide - 22, high - 36))
        where = f"left: {x + GAP // 2}px; top: {y + GAP // 2}px; width: {wide}px; height: {high}px"
        parts.append(f'<section style="{where}"><h2>{title}</h2>{body}</section>')
    return f"<!doctype html><meta charset=utf-8><style>{STYLE}</style><main>{''.join(parts)}</main>"
