"""Whether a camera can see, from a few small luma pictures a second."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import numpy as np

from streamd.analysis.glance.health_measures import Floats, Luma, Measures, changed_blocks, measure
from streamd.analysis.glance.health_reference import FULL_S, Match, Reference, Stillness
from streamd.analysis.glance.health_settings import CameraHealthSettings

HealthState = Literal["covered", "dark", "overexposed", "blurred", "frozen", "moved", "no_signal_picture"]
STATES: tuple[HealthState, ...] = (
    "covered", "dark", "overexposed", "blurred", "frozen", "moved", "no_signal_picture",
)  # fmt: skip
SMOOTH_S = 0.9
"""Time constant of the average of recent pictures."""
LEARN_S = 15.0
"""A reference decides nothing before it has learned for so long."""
GAP_S = 5.0
"""A longer time between two pictures is an outage."""


DARK, BRIGHT = 30.0, 222.0
"""Levels beyond which nothing can be seen."""
LIT, TEXT, LOGO = 100, 0.003, 0.02
"""Of a black picture, the level of what is drawn on it, and shares of pixels that a text and a logo have."""
FLAT = 0.5
"""Share of pixels of the very same level that a drawn picture has."""
STEADY = 0.12
"""Share of blocks that may change in a drawn picture: its logo moves."""
STILL = 0.03
"""Share of blocks that may change in a frozen picture: its clock runs."""
DOUBT_S = 120.0
"""A picture that only seems to be different is learned after all, once it has been so for this long."""
DIM, DIM_S = 0.8, 60.0
"""Light, in relation to the reference, below which edges may be lost to the dark; and for how long they say nothing
once that was seen: something large that passes then hides what else tells the scene."""
LEVELS = (50.0, 90.0)
"""Mean brightness between which references are kept apart."""


class Evidence(NamedTuple):
    """What one picture says."""

    states: tuple[HealthState, ...]
    match: Match | None
    flat: float
    still: float


class HealthCore:
    """The states of one camera. Deterministic; for one thread.

    Args:
        settings: time constants.
    """

    def __init__(self, settings: CameraHealthSettings) -> None:
        self._settings = settings
        self.states: tuple[HealthState, ...] = ()
        self._smooth: Floats | None = None
        self._before: Luma | None = None
        self._t = 0.0
        self._seen_s: dict[HealthState, float] = dict.fromkeys(STATES, 0.0)
        """Seconds for which a state has been seen or, where it is reported, has not been seen."""
        self._references: dict[int, Reference] = {}
        """By kind of light."""
        self._light = -1
        self._still = Stillness(settings.frozen_s)
        self._doubt_s = self._moved_s = self._exact_s = 0.0
        self._dimmed_t = -math.inf
        """When the scene was last seen with its edges lost to the dark."""
        self._flat = self._bright = self._usual_s = 0.0
        """Usual shares of pixels of one level, and of saturated cells; and for how long they have been learned."""
        self.evidence: Evidence | None = None

    def step(self, picture: Luma, t: float) -> tuple[HealthState, ...]:
        """Takes the next picture.

        Args:
            picture: (H, W), at least 20 each.
            t: when it was captured, seconds on a monotonic clock.

        Returns:
            The states reported now.
        """
        if self._smooth is None or self._before is None or picture.shape != self._before.shape:
            self._references, self._light = {}, -1
            self._smooth, self._before, self._t = picture.astype(np.float32), picture, t
            return self.states
        dt = t - self._t
        if dt <= 0:
            return self.states
        self._t = t
        if dt > GAP_S:
            self.resume()
            self._smooth[...] = picture
            self._before = picture
            return self.states
        new = picture.astype(np.float32)
        new -= self._smooth
        new *= np.float32(min(1.0, 1.5 * dt / (SMOOTH_S + dt)))
        self._smooth += new
        changed = changed_blocks(picture, self._before)
        self._before = picture
        return self._settle(self._judge(picture, measure(self._smooth), changed, dt), dt)

    def resume(self) -> None:
        """Pictures come again after an outage: what was learned stays, what spans time is forgotten."""
        self._still.again()
        self._dimmed_t = -math.inf
        for state in STATES:
            self._seen_s[state] = 0.0

    def accept(self) -> None:
        """The scene is the right one from now on: what was learned of another one is forgotten."""
        self._references, self._light, self._moved_s = {}, -1, 0.0

    def _judge(self, picture: Luma, m: Measures, changed: float, dt: float) -> tuple[HealthState, ...]:
        cells = m.mean.size
        some = picture[::2, ::2]
        levels = np.bincount(some.ravel(), minlength=256)
        flat = float(levels[: int(BRIGHT)].max()) / some.size
        dark = float(levels[: int(DARK) + 1].sum()) >= 0.9 * some.size
        shown = float(levels[LIT:].sum()) / some.size
        self._exact_s = 0.0 if changed else self._exact_s + dt
        # A black picture is that of a recorder if it has a logo, or a text that is not a running clock.
        drawn = not dark or shown > LOGO or (shown > TEXT and self._exact_s >= 2.0)
        bright = float(levels[int(BRIGHT) :].sum()) / some.size
        # Of what can become white at all: some scenes are black for a third.
        white = bright / (1 - float(levels[: int(DARK) + 1].sum()) / some.size) if bright > 0.5 else bright
        frozen = self._still.step(changed <= STILL, dt)
        found: tuple[HealthState, ...] = ()
        match: Match | None = None
        doubt = False
        if flat > max(FLAT, self._flat + 0.25) and changed <= STEADY and drawn:
            found = ("no_signal_picture",)
        elif dark:
            found = ("dark",)
        elif white > max(0.65, min(self._bright + 0.25, (1 + self._bright) / 2)):
            found = ("overexposed",)
        elif np.count_nonzero(m.coarse < 2.0) > 0.97 * cells:
            found = ("covered",)
        else:
            found, match, doubt = self._compare(m)
            if frozen:
                found = (*found, "frozen")
        if not found and changed > STILL:
            self._learn(m, match, doubt, dt, flat, bright)
        self.evidence = Evidence(found, match, flat, changed)
        return found

    def _compare(self, m: Measures) -> tuple[tuple[HealthState, ...], Match | None, bool]:
        """What the picture has become, its match, and whether it is doubtful."""
        now = self._references.get(self._light)
        if now is None or now.learned_s < LEARN_S:
            return (), None, False
        match = now.match(m)
        found = self._told(match, now)
        if not found:
            return (), match, self._doubtful(match, now)
        for light, other in self._references.items():
            if light != self._light and other.learned_s >= LEARN_S:
                second = other.match(m)
                if not self._told(second, other) and not self._doubtful(second, other):
                    self._light = light
                    return (), second, False
        return found, match, True

    def _told(self, match: Match, reference: Reference) -> tuple[HealthState, ...]:
        if not match.enough:
            return ()
        lost = match.kept < 0.35 * reference.kept
        if match.veiled > 0.6 and (match.plain > 0.55 or not lost):
            return ("covered",)
        if match.faded > 0.7 and match.blunt > 0.8 and match.similar < 0.4 and not lost:
            return ("covered",)
        if lost and match.plain > max(0.8, reference.plain + 0.35) and match.similar < 0.6:
            return ("covered",)
        if match.blunt > 0.75 and match.plain > 0.7 and (match.similar < 0.6 or match.contrast < 0.25):
            return ("covered",)
        if match.blunt > 0.33 and match.similar > 0.5 and (not lost or (match.dull < 0.25 and match.similar > 0.7)):
            return ("blurred",)
        if lost and reference.kept > 0.4:
            if self._dimmed(match):
                self._dimmed_t = self._t
            elif self._t - self._dimmed_t > DIM_S:
                return ("moved",)
        return ()

    @staticmethod
    def _dimmed(match: Match) -> bool:
        """Whether it is the scene in the dark: edges drown in noise; what is light and what is dark stays where it was.
        The less contrast is left, the more do lamps and what moves count."""
        return match.light < DIM and match.contrast < 0.6 and match.similar > 0.5 + match.contrast * 2 / 3

    @staticmethod
    def _doubtful(match: Match, reference: Reference) -> bool:
        return match.enough and (match.faded > 0.4 or match.blunt > 0.2 or match.kept < 0.6 * reference.kept)

    def _learn(self, m: Measures, match: Match | None, doubt: bool, dt: float, flat: float, bright: float) -> None:
        self._doubt_s = self._doubt_s + dt if doubt else 0.0
        if doubt and self._doubt_s < DOUBT_S:
            return
        # As slowly as references: a fault that comes within half a minute is not to be what is usual by then.
        self._usual_s += dt
        share = dt / min(self._usual_s, FULL_S)
        self._flat += share * (flat - self._flat)
        self._bright += share * (bright - self._bright)
        level = float(m.mean.mean())
        light = sum(level > each for each in LEVELS)
        now = self._references.get(self._light)
        if now is None:
            self._references[light], self._light = Reference(m), light
            return
        now.learn(m, dt, match.kept if match is not None else now.kept)
        if light != self._light and now.learned_s >= LEARN_S and not doubt:
            if light not in self._references:
                self._references[light] = now.copy()
            self._light = light

    def _settle(self, found: tuple[HealthState, ...], dt: float) -> tuple[HealthState, ...]:
        states = []
        for state in STATES:
            seen, reported = state in found, state in self.states
            since = self._seen_s[state]
            self._seen_s[state] = since = since + dt if seen != reported else max(0.0, since - dt)
            if reported:
                reported = since < self._settings.end_s
            else:
                reported = since >= self._settings.begin_s or (state == "frozen" and seen)
            if reported != (state in self.states):
                self._seen_s[state] = 0.0
            if reported:
                states.append(state)
        self._moved_s = self._moved_s + dt if "moved" in states else 0.0
        if self._moved_s >= self._settings.accept_moved_s:
            states.remove("moved")
            self.accept()
        if states != list(self.states):
            self.states = tuple(states)
        return self.states
