"""Seeded faults of a camera, applied to small luma pictures, for `health_eval.py` and the tests."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Luma = npt.NDArray[np.uint8]
SIZE = (160, 90)
BLACK, WHITE = 16, 235
NIGHT = 0.18
"""What is left of the light at night."""
SLOW_S = 20.0
"""How long a slow fault takes to come."""


@dataclass(frozen=True)
class Scene:
    """Pictures (N, 90, 160) of one camera that stands still; played forwards and backwards, without a jump."""

    name: str
    pictures: Luma
    noise: float = 0.0
    """Standard deviation added to each picture, in levels."""

    def at(self, number: int) -> Floats:
        """Picture `number` of an endless sequence."""
        last = len(self.pictures) - 1
        place = number % (2 * last) if last else 0
        picture: Floats = self.pictures[min(place, 2 * last - place)].astype(np.float32)
        return picture


def _soft(rng: np.random.Generator, spread: float) -> Floats:
    """A picture without structure: a slope and a broad spot."""
    coarse = rng.normal(0, spread, (2, 3)).astype(np.float32)
    return np.asarray(cv2.resize(coarse, SIZE, interpolation=cv2.INTER_CUBIC), np.float32)


def _ramp(strength: float, rng: np.random.Generator) -> Floats:
    """Share of each pixel behind an edge that crosses the picture from one of its sides."""
    x, y = np.meshgrid(np.linspace(0, 1, SIZE[0]), np.linspace(0, 1, SIZE[1]))
    way = (x, 1 - x, y, 1 - y)[int(rng.integers(4))]
    return np.clip((strength * 1.15 - way) / 0.1, 0, 1).astype(np.float32)


Apply = Callable[[Floats, float, int], Floats]
"""From a picture, the strength of the fault (0 to 1) and the number of the picture since its begin."""


def _moving_cover(rng: np.random.Generator, _: Scene) -> Apply:
    cover = rng.uniform(45, 190) + _soft(rng, 8)
    side = int(rng.integers(1 << 30))

    def apply(picture: Floats, strength: float, number: int) -> Floats:
        mask = _ramp(strength, np.random.default_rng(side))
        return picture * (1 - mask) + cover * mask

    return apply


def _spray(rng: np.random.Generator, _: Scene) -> Apply:
    cover, most = rng.uniform(45, 190) + _soft(rng, 8), rng.uniform(0.93, 1.0)
    return lambda picture, strength, number: picture * (1 - strength * most) + cover * strength * most


def _dark(rng: np.random.Generator, _: Scene) -> Apply:
    left = rng.uniform(0.0, 0.05)
    return lambda picture, strength, number: (picture - BLACK) * (1 - strength * (1 - left)) + BLACK


def _bright(rng: np.random.Generator, scene: Scene) -> Apply:
    base = np.percentile(scene.at(0), rng.uniform(5, 20)) - BLACK
    gain = max(1.5, (WHITE - BLACK) / max(base, 4.0))
    return lambda picture, strength, number: (picture - BLACK) * (1 + (gain - 1) * strength) + BLACK


def _defocus(rng: np.random.Generator, _: Scene) -> Apply:
    sigma = rng.uniform(2.0, 5.0)

    def apply(picture: Floats, strength: float, number: int) -> Floats:
        return np.asarray(cv2.GaussianBlur(picture, (0, 0), max(0.05, sigma * strength)), np.float32)

    return apply


def _drops(rng: np.random.Generator, _: Scene) -> Apply:
    sigma, wanted = rng.uniform(2.5, 4.0), rng.uniform(0.5, 0.75)
    mask = np.zeros((SIZE[1], SIZE[0]), np.float32)
    order = np.zeros_like(mask)
    while mask.mean() < wanted:
        centre = (int(rng.integers(SIZE[0])), int(rng.integers(SIZE[1])))
        drop = np.zeros_like(mask)
        cv2.circle(drop, centre, int(rng.integers(8, 22)), 1.0, -1)
        order[(drop > 0) & (mask == 0)] = mask.mean() / wanted
        mask = np.maximum(mask, drop)
    soft = cv2.GaussianBlur(mask, (0, 0), 1.5)

    def apply(picture: Floats, strength: float, number: int) -> Floats:
        here = soft * (order <= strength)
        return np.asarray(picture * (1 - here) + cv2.GaussianBlur(picture, (0, 0), sigma) * here, np.float32)

    return apply


def _freeze(rng: np.random.Generator, _: Scene) -> Apply:
    held: list[Floats] = []

    def apply(picture: Floats, strength: float, number: int) -> Floats:
        if not held:
            held.append(picture.copy())
        frozen: Floats = held[0].copy()
        return frozen

    return apply


def _warped(picture: Floats, angle: float, dx: float, dy: float, scale: float = 1.0) -> Floats:
    matrix = cv2.getRotationMatrix2D((SIZE[0] / 2, SIZE[1] / 2), angle, scale)
    matrix[:, 2] += (dx, dy)
    return np.asarray(cv2.warpAffine(picture, matrix, SIZE, borderMode=cv2.BORDER_REFLECT), np.float32)


def _shift(rng: np.random.Generator, _: Scene) -> Apply:
    angle, far = rng.uniform(0, 2 * np.pi), rng.uniform(10, 50)
    dx, dy = far * np.cos(angle), far * np.sin(angle) * 0.6
    return lambda picture, strength, number: _warped(picture, 0, dx * strength, dy * strength)


def _rotate(rng: np.random.Generator, _: Scene) -> Apply:
    angle = rng.uniform(8, 35) * rng.choice((-1, 1))
    return lambda picture, strength, number: _warped(picture, angle * strength, 6 * strength, 3 * strength, 1.05)


_TEXTS = ("NO SIGNAL", "VIDEO LOSS", "Kein Signal", "CAM 07", "NO VIDEO")


def _text(picture: Luma, rng: np.random.Generator, level: int) -> None:
    text = str(rng.choice(_TEXTS))
    place = (int(rng.integers(10, 70)), int(rng.integers(25, 80)))
    cv2.putText(picture, text, place, cv2.FONT_HERSHEY_SIMPLEX, rng.uniform(0.35, 0.6), level, 1, cv2.LINE_AA)


def _screen(rng: np.random.Generator, _: Scene) -> Apply:
    flat = np.full((SIZE[1], SIZE[0]), int(rng.choice((29, 32, 35, 41, 81, 105, 128, 145))), np.uint8)
    if rng.random() < 0.7:
        _text(flat, rng, 235)
    return lambda picture, strength, number: flat.astype(np.float32)


def _logo(rng: np.random.Generator, _: Scene) -> Apply:
    def drawn(dx: int, dy: int, seed: int) -> Luma:
        own = np.random.default_rng(seed)
        screen = np.full((SIZE[1], SIZE[0]), int(own.choice((16, 16, 24, 60, 128, 210))), np.uint8)
        centre = (int(own.integers(50, 110)) + dx, int(own.integers(30, 60)) + dy)
        cv2.ellipse(screen, centre, (int(own.integers(12, 30)), int(own.integers(8, 20))), 0, 0, 360, 180, -1)
        cv2.putText(screen, "ACME", (centre[0] - 14, centre[1] + 4), cv2.FONT_HERSHEY_SIMPLEX, 0.4, 60, 1, cv2.LINE_AA)
        return screen

    seed, moves = int(rng.integers(1 << 30)), rng.random() < 0.3

    def apply(picture: Floats, strength: float, number: int) -> Floats:
        step = number // 2 % 20 - 10 if moves else 0
        return drawn(step, step // 2, seed).astype(np.float32)

    return apply


@dataclass(frozen=True)
class Fault:
    """A kind of fault."""

    name: str
    state: str
    """What is to be reported."""
    make: Callable[[np.random.Generator, Scene], Apply]
    slow: bool = True
    """Whether it can come slowly, too."""
    after: str = "noise"
    """What follows the fault in the camera: noise and a clock, a `clock` alone, or `nothing`."""


FAULTS: tuple[Fault, ...] = (
    Fault("cover", "covered", _moving_cover),
    Fault("spray", "covered", _spray),
    Fault("dark", "dark", _dark),
    Fault("overexposed", "overexposed", _bright),
    Fault("defocus", "blurred", _defocus),
    Fault("drops", "blurred", _drops),
    Fault("freeze", "frozen", _freeze, slow=False, after="nothing"),
    Fault("freeze_clock", "frozen", _freeze, slow=False, after="clock"),
    Fault("shift", "moved", _shift),
    Fault("rotate", "moved", _rotate),
    Fault("blue", "no_signal_picture", _screen, slow=False, after="nothing"),
    Fault("logo", "no_signal_picture", _logo, slow=False, after="nothing"),
)
"""Another scene (`moved`, too) is made of a second scene: see `another`."""


def another(other: Scene) -> Fault:
    """The camera looks at another scene."""

    def make(_: np.random.Generator, __: Scene) -> Apply:
        return lambda picture, strength, number: other.at(number) if strength >= 0.5 else picture

    return Fault("other_scene", "moved", make, slow=False)


def clock(picture: Luma, number: int, rate: float, place: tuple[int, int]) -> None:
    """Burns the time into a picture."""
    seconds = int(number / rate)
    text = f"{8 + seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}"
    x, y = place
    box = picture[y - 9 : y + 1, x : x + 46]
    box[...] = np.minimum(box, 60)
    cv2.putText(picture, text, (x, y - 1), cv2.FONT_HERSHEY_SIMPLEX, 0.3, 235, 1, cv2.LINE_8)


class Simulation:
    """Pictures of a camera, healthy or with a fault. Deterministic.

    Args:
        scene: what it sees.
        seed: of noise, clock and fault.
        rate: pictures a second.
    """

    def __init__(self, scene: Scene, seed: int, rate: float = 2.0) -> None:
        self.scene, self.rate = scene, rate
        self._rng = np.random.default_rng(seed)
        self._fault_rng = np.random.default_rng((seed, 1))
        self.has_clock = bool(self._rng.random() < 0.5)
        self._place = (
            (int(self._rng.integers(0, SIZE[0] - 47)), int(self._rng.choice((10, SIZE[1] - 1))))
        )  # fmt: skip
        self.number = 0

    def picture(
        self, fault: Fault | None = None, apply: Apply | None = None, strength: float = 1.0, n: int = 0
    ) -> Luma:
        """The next picture."""
        picture = self.scene.at(self.number)
        after = "noise"
        if fault is not None and apply is not None:
            picture = apply(picture, strength, n)
            after = fault.after
        noise = max(self.scene.noise, 0.5 if fault is not None else 0.0)
        if after == "noise" and noise:
            picture = picture + self._rng.normal(0, noise, picture.shape).astype(np.float32)
        shown: Luma = np.clip(np.rint(picture), 0, WHITE if after == "noise" else 255).astype(np.uint8)
        if after == "clock" or (after == "noise" and self.has_clock):
            clock(shown, self.number, self.rate, self._place)
        self.number += 1
        return shown

    def make(self, fault: Fault) -> Apply:
        """One instance of a fault."""
        return fault.make(self._fault_rng, self.scene)


def daylight(hours: float, rate: float) -> Sequence[tuple[float, float]]:
    """Gain and noise of each picture over a dusk, a night and a dawn of `hours` together."""
    return _lit(np.array((0, 0.1, 0.4, 0.6, 0.9, 1)) * hours * 3600, rate)


def twilight(seconds: float, rate: float) -> Sequence[tuple[float, float]]:
    """The same of a dusk and a dawn of so many seconds each, with two minutes of night between them."""
    return _lit(np.cumsum((0, 90, seconds, 120, seconds, 60)), rate)


def _lit(times_s: npt.NDArray[np.float64], rate: float) -> Sequence[tuple[float, float]]:
    """Gain and noise of each picture, where dusk and dawn begin and end at the inner ones of six times."""
    at = np.linspace(0, times_s[-1], int(times_s[-1] * rate))
    light = np.interp(at, times_s, (1.0, 1.0, NIGHT, NIGHT, 1.0, 1.0))
    noise = np.interp(light, (NIGHT, 1.0), (2.0, 0.4))
    return list(itertools.starmap(lambda a, b: (float(a), float(b)), zip(light, noise, strict=True)))
