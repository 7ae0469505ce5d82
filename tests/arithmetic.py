"""What the processor of this machine computes with, where a figure depends on it."""

from __future__ import annotations

from functools import cache


@cache
def has_bf16() -> bool:
    """Whether OpenVINO computes float models in bfloat16 by itself; it uses float32 where the processor has none."""
    import openvino

    return "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
