"""Measurements of `gpu_suite.py` that compare: with and without tracking, a plan and its float model."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from family_table import Item, accuracy, compared

Table = dict[str, Any]


def both_ways(config: Mapping[str, Any], section: str) -> dict[str, Table]:
    """The sections of a configuration without one of them (`off`) and with it (`on`), by default with its defaults."""
    rest = {name: value for name, value in config.items() if name != section}
    return {"off": rest, "on": {**rest, section: config.get(section, {})}}


def averaged(values: Sequence[float], digits: int) -> Table:
    """Their `mean` and its `standard_error`, rounded; the latter is None where there is one value."""
    error = round(statistics.stdev(values) / len(values) ** 0.5, digits) if len(values) > 1 else None
    return {"mean": round(statistics.fmean(values), digits), "standard_error": error}


def with_and_without(run: Callable[..., Table], config: Mapping[str, Any], section: str, turns: int) -> Table:
    """The rate of a daemon with and without one section of its configuration, in turns.

    Args:
        run: runs a daemon with the sections `config`; returns its figures, among them `fps`.
        config: the other sections.
        section: what is compared, with its defaults.
        turns: of both.

    Returns:
        Frames/s of each turn, `off` and `on`; `share`, the median of those with the section over that of those without;
        `each`, the same of every turn; `mean` and `standard_error` of the latter (none of
        one turn); and all figures of the daemons under `runs`. `error` where one did not run.
    """
    sections = both_ways(config, section)
    found: Table = {"off": [], "on": [], "runs": []}
    for turn in range(turns):
        # The order changes, so that what drifts affects both alike.
        for kind in ("off", "on") if turn % 2 == 0 else ("on", "off"):
            result = run(config=sections[kind])
            found["runs"].append({kind: result})
            if "error" in result:
                return found | {"error": f"{section} {kind}: {result['error']}"}
            found[kind].append(result["fps"])
    found["share"] = round(statistics.median(found["on"]) / statistics.median(found["off"]), 3)
    each = [on / off for on, off in zip(found["on"], found["off"], strict=True)]
    # One process's rate scatters by a tenth: a share without its error decides nothing.
    return found | {"each": [round(share, 3) for share in each]} | averaged(each, 3)


def say_shares(result: Table) -> str:
    """One line."""
    if "error" in result:
        return str(result["error"])
    rates = {kind: " ".join(f"{fps:.0f}" for fps in result[kind]) for kind in ("off", "on")}
    return (
        f"off {rates['off']}  on {rates['on']} frames/s  share {result['share']} of medians, {result['each']} by turn, "
        f"mean {result['mean']} ± {result['standard_error']}"
    )


def loss(
    plan: Path, float_model: str, sets: Mapping[str, Path], *, engine: str = "tensorrt", keep: Callable[[Table], None]
) -> Table:
    """What a plan loses against its float model, picture by picture, with the interval of the loss.

    The float model runs on the CPU (OpenVINO), the plan through the daemon's own path on the GPU.

    Args:
        plan: or an ONNX file, where another engine runs it.
        float_model: MODEL[:HEAD].
        sets: folders with `images` and `labels`, by name.
        engine: that runs the plan.
        keep: is given the result after each set.

    Returns:
        By set what `family_table.compared` tells.
    """
    item = Item.of(float_model)
    found: Table = {}
    for name, folder in sets.items():
        first = accuracy(item.model, item.head, folder, {"kind": "openvino"}, None)
        found[name] = compared(first, accuracy(str(plan), None, folder, {"kind": engine}, None))
        keep(found)
    return found


def say_losses(result: Table) -> str:
    """One line."""
    if "error" in result:
        return str(result["error"])
    parts = []
    for name, one in result.items():
        interval = one["interval"]
        spread = "" if interval is None else f" ({interval['low']:.4f} to {interval['high']:.4f})"
        parts.append(f"{name} {one['float']['map']:.4f} -> {one['int8']['map']:.4f}, lost {one['drop']:.4f}{spread}")
    return "; ".join(parts)
