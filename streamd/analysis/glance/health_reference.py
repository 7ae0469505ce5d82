"""What camera health has learned of a camera: how it looks by day and by night, and how still it can be."""

from __future__ import annotations

import copy
import math
from typing import NamedTuple

import numpy as np

from streamd.analysis.glance.health_measures import Floats, Measures, agreement

FULL_S = 240.0
"""Time constant of the reference, once it is that old."""
TEXTURED = 6.0
LOG_TEXTURED = math.log(TEXTURED)
"""Squared levels of `coarse` from which a cell has texture."""
NOISE = 0.3
"""Squared levels that noise leaves in the average of recent pictures."""
BLACK = 16.0
PLAIN = 2.0
"""Squared levels of `fine` below which a cell has no detail."""
LOG_PLAIN = math.log(PLAIN + NOISE)
STRUCTURED = 0.02
"""Energy of compressed edges from which a cell has some."""
WHITE, LIGHTER = 210.0, 20.0
"""Mean level of a cell of which most is white, and by how much more that is than before if it is overexposed now."""
KEPT = 0.45
"""Correlation from which a cell still shows what it showed."""
LONGEST_STILL_S = 600.0
FADE_S = 21_600.0
"""In this time, the longest still time is forgotten to a third."""


class Match(NamedTuple):
    """A picture compared with a reference. Shares are of the cells that have texture or edges in the reference,
    and are not overexposed."""

    kept: float
    """Share of cells whose edges are where they were."""
    faded: float
    """Share of cells that have lost nearly all contrast."""
    blunt: float
    """Share of cells that have lost sharpness, in relation to their contrast or altogether."""
    veiled: float
    """Share of cells whose contrast is below a fifth of what the light explains."""
    dull: float
    """Sharpness of the picture where it has texture now, in relation to the reference."""
    plain: float
    """Share of all cells without detail."""
    similar: float
    """Correlation of the brightness of cells, -1 to 1."""
    contrast: float
    """Spread of the brightness of cells, in relation to the reference."""
    light: float
    """Brightness above black, in relation to the reference, 0.1 to 1."""
    enough: bool
    """Whether the reference has texture enough to judge by."""


class Reference:
    """A slow average of a camera's healthy pictures in one kind of light."""

    def __init__(self, m: Measures) -> None:
        self.mean, self.edges = m.mean.copy(), m.edges.copy()
        self.log_fine, self.log_coarse = np.log(m.fine + NOISE), np.log(m.coarse + NOISE)
        self.learned_s = 0.0
        self.kept = 0.9
        """Share of cells that are usually kept."""

    def copy(self) -> Reference:
        """A reference that goes on from this one, and soon follows its own light."""
        other = copy.deepcopy(self)
        other.learned_s = min(self.learned_s, FULL_S / 4)
        return other

    def learn(self, m: Measures, dt: float, kept: float) -> None:
        """Follows a healthy picture, `dt` seconds after the one before.

        Texture is averaged as a logarithm: something large that passes now and then must not decide.
        """
        self.learned_s += dt
        share = np.float32(dt / min(self.learned_s + dt, FULL_S))
        self.mean += share * (m.mean - self.mean)
        self.edges += share * (m.edges - self.edges)
        self.log_fine += share * (np.log(m.fine + NOISE) - self.log_fine)
        self.log_coarse += share * (np.log(m.coarse + NOISE) - self.log_coarse)
        self.kept += min(1.0, dt / 30.0) * (kept - self.kept)

    @property
    def plain(self) -> float:
        """Share of cells that usually have no detail."""
        return float(np.count_nonzero(self.log_fine < LOG_PLAIN) / self.log_fine.size)

    def match(self, m: Measures) -> Match:
        """Compares a picture."""
        shape = m.mean.shape
        correlation, energy = agreement(m.edges, self.edges, (shape[0], shape[1]))
        # A cell that has become white has lost its texture and its edges to the light, and tells nothing of the lens.
        readable = (m.mean < WHITE) | (m.mean < self.mean + LIGHTER)
        structured = (energy > STRUCTURED) & readable
        textured = (self.log_coarse > LOG_TEXTURED) & readable
        some, of = int(np.count_nonzero(structured)), int(np.count_nonzero(textured))
        kept = float(np.count_nonzero(correlation[structured] > KEPT)) / max(some, 1)
        # Less light makes less contrast.
        bright = min(1.0, max(0.1, (float(m.mean.mean()) - BLACK) / max(float(self.mean.mean()) - BLACK, 1.0)))
        light = bright**2
        fine, coarse = m.fine[textured], m.coarse[textured]
        was_fine, was_coarse = np.exp(self.log_fine[textured]), np.exp(self.log_coarse[textured])
        faded = float(np.count_nonzero(coarse < 0.12 * light * was_coarse + NOISE)) / max(of, 1)
        unsharp = (fine / (coarse + 1) < 0.6 * was_fine / (was_coarse + 1)) & (fine < 0.5 * was_fine)
        blunt = float(np.count_nonzero(unsharp | (fine < 0.15 * light * was_fine + NOISE))) / max(of, 1)
        veiled = float(np.count_nonzero(coarse < 0.04 * light * was_coarse + NOISE)) / max(of, 1)
        ratios, usual = m.fine[m.coarse > TEXTURED], was_fine / (was_coarse + 1)
        dull = 0.0
        if len(ratios) and of:
            dull = _middle(ratios / (m.coarse[m.coarse > TEXTURED] + 1)) / (_middle(usual) + 1e-6)
        plain = float(np.count_nonzero(m.fine < PLAIN)) / m.fine.size
        mine, theirs = m.mean - m.mean.mean(), self.mean - self.mean.mean()
        own, other = float((mine * mine).sum()), float((theirs * theirs).sum())
        similar = float((mine * theirs).sum()) / math.sqrt(own * other + 1e-9)
        contrast = math.sqrt((own + 1e-9) / (other + 1e-9))
        return Match(kept, faded, blunt, veiled, dull, plain, similar, contrast, bright, some >= 12 and of >= 12)


class Stillness:
    """How long the picture of a camera can stand still without being frozen.

    Args:
        shortest_s: see `CameraHealthSettings.frozen_s`.
    """

    def __init__(self, shortest_s: float) -> None:
        self._shortest_s = shortest_s
        self._longest_s = 0.0
        self._moving_s = 0.0
        self.still_s = 0.0

    def step(self, still: bool, dt: float) -> bool:
        """Whether the picture is frozen, `dt` seconds after the one before."""
        if still:
            self.still_s += dt
            return self.still_s >= self.limit_s
        self._moving_s += dt
        self._longest_s = max(self._longest_s * math.exp(-dt / FADE_S), min(self.still_s, 2 * self._longest_s + 5))
        self.still_s = 0.0
        return False

    def again(self) -> None:
        """The connection is new."""
        self.still_s = 0.0

    @property
    def limit_s(self) -> float:
        """How long it may stand still."""
        unknown = self._moving_s < 20.0
        return max(self._shortest_s, min(3 * max(self._longest_s, 20.0 if unknown else 0.0), LONGEST_STILL_S))


def _middle(values: Floats) -> float:
    """The median, of some: np.median takes ten times as long for so few."""
    return float(np.sort(values)[len(values) // 2])
