"""Training pictures made on the device: mosaic, scale, shift, mirror, colour, mixing. No step waits for the host.

Every output pixel looks up its own source pixel, so a mosaic of four costs as much as one picture. Labels follow as a
table of fixed size: rows x1 y1 x2 y2 score class in output pixels, score 0 where there is none.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from demo_model import CLASSES, PAD, SIZE
from demo_model.pack import SIDE, Pack

MAX_ROWS = 40
"""Maximum number of rows per source picture; the largest boxes are kept."""


@dataclass(frozen=True)
class Strength:
    """Strength of each augmentation."""

    mosaic: float = 0.6
    """Share of pictures made of four."""
    mosaic_scale: tuple[float, float] = (0.4, 1.3)
    """Scale of each of the four; 1: its longest side equals the output's."""
    scale: tuple[float, float] = (0.6, 1.7)
    """Scale of the others."""
    aspect: float = 0.12
    """Deviation of the logarithm of width over height."""
    mixup: float = 0.1
    """Share of pictures laid over another."""
    hue: float = 0.06
    """In radians, deviation."""
    saturation: float = 0.5
    brightness: float = 0.35
    contrast: float = 0.3
    grey: float = 0.05
    """Share of pictures without colour."""

    @staticmethod
    def mild() -> Strength:
        """Mild changes, for the end of training."""
        return Strength(mosaic=0.0, scale=(0.7, 1.25), aspect=0.05, mixup=0.0, hue=0.02, saturation=0.2,
                        brightness=0.15, contrast=0.1, grey=0.02)  # fmt: skip


class Store:
    """All source pictures and labels on the device.

    Args:
        pack: what to train on.
        device: where.
        rare: 0 draws every picture as often, 1 pictures of rare classes so much oftener that classes are level.
        seed: of every draw.
        leave: pictures never drawn.
    """

    def __init__(self, pack: Pack, device: str, rare: float = 0.5, seed: int = 0, leave: Sequence[int] = ()) -> None:
        n = len(pack.rows)
        # One long list of pixels, a whole number each, full size first, then half size: where pictures shrink much, the
        # half one is read. One look-up finds all three colours.
        self.pixels = torch.empty(n * (SIDE**2 + (SIDE // 2) ** 2), dtype=torch.int32, device=device)
        for first in range(0, n, 256):
            whole = torch.from_numpy(pack.pixels[first : first + 256]).to(device)
            half = F.avg_pool2d(whole.permute(0, 3, 1, 2).float(), 2).round().permute(0, 2, 3, 1)
            for part, at, side in ((whole, 0, SIDE), (half, n * SIDE**2, SIDE // 2)):
                start = at + first * side**2
                r, g, b = part.to(torch.int32).reshape(-1, 3).unbind(-1)
                self.pixels[start : start + len(r)] = r | g << 8 | b << 16
        self.half_at = n * SIDE * SIDE
        self.sizes = torch.tensor(pack.sizes, dtype=torch.float32, device=device)
        table = np.zeros((n, MAX_ROWS, 6), np.float32)
        held = np.zeros((n, len(CLASSES)))
        for i, rows in enumerate(pack.rows):
            order = np.argsort(-(rows[:, 4] + (rows[:, 2] - rows[:, 0]) * (rows[:, 3] - rows[:, 1])))[:MAX_ROWS]
            table[i, : len(order)] = rows[order]
            np.maximum.at(held[i], rows[:, 5].astype(int), rows[:, 4])
        table[:, :, :4] *= np.tile(pack.sizes, 2)[:, None]
        self.rows = torch.tensor(table, device=device)
        # Repeat factor (Gupta et al., LVIS, 2019): a picture counts as its rarest class does.
        share = np.maximum(held.mean(0), 1e-4)
        factor = np.maximum(1.0, (held * (share.max() / share) ** rare).max(1))
        factor[list(leave)] = 0
        self.drawn = torch.tensor(np.cumsum(factor / factor.sum()), dtype=torch.float32, device=device)
        self.device, self.count = device, n
        # Random numbers are drawn before a batch is, so that drawing it can be recorded and replayed.
        self._generator = torch.Generator(device).manual_seed(seed)
        self._even, self._bell = torch.zeros(0, device=device), torch.zeros(0, device=device)
        self._at = [0, 0]

    def shake(self, batch: int) -> None:
        """New random numbers, at the place of the last ones, for one batch."""
        if len(self._bell) < batch * 8:
            self._even = torch.empty(batch * 48, device=self.device)
            self._bell = torch.empty(batch * 8, device=self.device)
        self._even.uniform_(generator=self._generator)
        self._bell.normal_(generator=self._generator)

    def rewind(self) -> None:
        """Goes to the first random number."""
        self._at = [0, 0]

    def uniform(self, *shape: int, low: float = 0.0, high: float = 1.0) -> Any:
        """The next random numbers from low to high."""
        return self._next(0, shape) * (high - low) + low

    def normal(self, *shape: int) -> Any:
        """The next normally distributed random numbers."""
        return self._next(1, shape)

    def _next(self, which: int, shape: tuple[int, ...]) -> Any:
        first, count = self._at[which], math.prod(shape)
        self._at[which] += count
        return (self._even, self._bell)[which][first : first + count].view(shape)


def _rgb(packed: Any) -> Any:
    return torch.stack([packed & 255, packed >> 8 & 255, packed >> 16], -1).float()


def _look_up(
    pixels: Any, at: Any, row: Any, size: Any, scale: Any, shift: Any, mirror: Any, centre: Any, colour: Any
) -> Any:
    """Draws a batch. Tables are by picture and tile (B, 4) or (B, 4, 2); `centre` (B, 2); `colour` (B, 3, 4).

    Returns:
        (B, 3, SIZE, SIZE) 0..1.
    """
    grid = torch.arange(SIZE, device=pixels.device)
    x, y = (grid + 0.5)[None, None, :], (grid + 0.5)[None, :, None]
    tile = (x > centre[:, 0, None, None]).long() + 2 * (y > centre[:, 1, None, None]).long()
    n = torch.arange(len(centre), device=pixels.device)[:, None, None]
    sx = (x - shift[n, tile, 0]) / scale[n, tile, 0]
    sy = (y - shift[n, tile, 1]) / scale[n, tile, 1]
    width, height = size[n, tile, 0], size[n, tile, 1]
    inside = (sx >= 0) & (sy >= 0) & (sx < width) & (sy < height)
    sx = torch.where(mirror[n, tile], width - sx, sx) - 0.5
    sy = sy - 0.5
    x0, y0 = sx.floor(), sy.floor()
    fx, fy = (sx - x0)[..., None], (sy - y0)[..., None]
    low = torch.zeros_like(x0)
    left, right = (torch.minimum(torch.maximum(x0 + i, low), width - 1).long() for i in (0, 1))
    top, bottom = (torch.minimum(torch.maximum(y0 + i, low), height - 1).long() for i in (0, 1))
    base, step = at[n, tile], row[n, tile]
    above = _rgb(pixels[base + top * step + left]) * (1 - fx) + _rgb(pixels[base + top * step + right]) * fx
    below = _rgb(pixels[base + bottom * step + left]) * (1 - fx) + _rgb(pixels[base + bottom * step + right]) * fx
    rgb = above * (1 - fy) + below * fy
    rgb = torch.where(inside[..., None], rgb, float(PAD)) / 255
    r, g, b = rgb.unbind(-1)
    channels = [
        (r * colour[:, i, 0, None, None] + g * colour[:, i, 1, None, None] + b * colour[:, i, 2, None, None]
         + colour[:, i, 3, None, None])
        for i in range(3)
    ]  # fmt: skip
    return torch.stack(channels, 1).clamp(0, 1)


class Augment:
    """Draws training batches from a store.

    Args:
        store: the pictures.
    """

    def __init__(self, store: Store) -> None:
        self._store, self.device = store, store.device
        self.look_up: Any = _look_up
        """Finds the pixels of `draw`; can be compiled."""
        # Constants live on the device: making one there is a copy that the host waits for.
        self._second = torch.tensor([[0, 0], [1, 0], [0, 1], [1, 1]], device=store.device) == 1
        yiq = torch.tensor([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])
        self._yiq, self._rgb = yiq.to(store.device), torch.linalg.inv(yiq).to(store.device)
        self._levels = torch.zeros(12, device=store.device)

    def use(self, strength: Strength, *, mix: bool = True) -> None:
        """Sets the strength of what `draw` draws, on the device: a recorded one follows. `mix`: lay pictures over."""
        s = strength
        values = (s.mosaic, *s.mosaic_scale, *s.scale, s.aspect, s.hue, s.saturation, s.brightness, s.contrast, s.grey,
                  float(mix))  # fmt: skip
        self._levels.copy_(torch.tensor(values))

    def __call__(self, batch: int, strength: Strength) -> tuple[Any, Any]:
        """Draws a batch of one strength: see `draw`."""
        self.use(strength)
        self.shake(batch)
        return self.draw(batch, int(batch * strength.mixup))

    def shake(self, batch: int) -> None:
        """Before each batch: new random numbers."""
        self._store.shake(batch)

    def draw(self, batch: int, mixed: int) -> tuple[Any, Any]:
        """Draws a batch with the strength and the random numbers in use, without a wait for the host.

        Args:
            batch: number of pictures.
            mixed: how many of them are laid over another.

        Returns:
            Pictures (B, 3, SIZE, SIZE) 0..1 and rows (B, R, 6) in output pixels.
        """
        s = self._store
        s.rewind()
        share_of_mosaic, a, b, c, d, deviation, *_, mix = self._levels.unbind()
        source = torch.searchsorted(s.drawn, s.uniform(batch, 4)).clamp(max=s.count - 1)
        mosaic = s.uniform(batch) < share_of_mosaic
        # A picture that is no mosaic is one whose centre is the lower right corner: the first tile is all there is.
        centre = torch.where(mosaic[:, None], s.uniform(batch, 2, low=0.25, high=0.75) * SIZE, float(SIZE))
        start = torch.where(self._second, centre[:, None], 0.0)
        end = torch.where(self._second, float(SIZE), centre[:, None])
        size = s.sizes[source]
        share = s.uniform(batch, 4)
        zoom = torch.where(mosaic[:, None], a * (b / a) ** share, c * (d / c) ** share)
        aspect = torch.exp(s.normal(batch, 4) * (deviation / 2))
        zoom = zoom * SIZE / size.amax(-1)
        scale = torch.stack([zoom * aspect, zoom / aspect], -1)
        shift = start + s.uniform(batch, 4, 2) * (end - start - size * scale)
        mirror = s.uniform(batch, 4) < 0.5
        halved = zoom < 0.6
        at = torch.where(halved, s.half_at + source * (SIDE // 2) ** 2, source * SIDE**2)
        row = torch.where(halved, SIDE // 2, SIDE)
        level = torch.where(halved, 0.5, 1.0)[..., None]
        pictures = self.look_up(
            s.pixels, at, row, (size * level).floor().clamp(min=1), scale / level, shift, mirror, centre,
            self._colours(batch),
        )  # fmt: skip
        rows = self._rows(source, size, scale, shift, mirror, start, end)
        if mixed:
            share = 1 - mix * s.uniform(mixed, 1, 1, 1, low=0.35, high=0.6)
            other = pictures[-mixed:]
            pictures = torch.cat([pictures[:mixed] * share + other * (1 - share), pictures[mixed:]])
            extra = torch.zeros_like(rows)
            extra[:mixed] = rows[-mixed:] * mix
            rows = torch.cat([rows, extra], 1)
        return pictures, rows

    def plain(self, source: Any) -> tuple[Any, Any]:
        """Pictures letterboxed and otherwise as they are, one each of `source` (B,): as `__call__` returns them."""
        s = self._store
        source = source[:, None].expand(-1, 4)
        size = s.sizes[source]
        scale = (SIZE / size.amax(-1))[..., None].expand(-1, -1, 2)
        shift = (SIZE - size * scale) / 2
        mirror = torch.zeros_like(source, dtype=torch.bool)
        centre = torch.full((len(source), 2), float(SIZE), device=s.device)
        start = torch.where(self._second, centre[:, None], 0.0)
        colour = torch.eye(3, 4, device=s.device).expand(len(source), 3, 4)
        row = torch.full_like(source, SIDE)
        pictures = _look_up(s.pixels, source * SIDE**2, row, size, scale, shift, mirror, centre, colour)
        rows = self._rows(
            source, size, scale, shift, mirror, start, torch.where(self._second, float(SIZE), centre[:, None])
        )
        return pictures, rows

    def _rows(self, source: Any, size: Any, scale: Any, shift: Any, mirror: Any, start: Any, end: Any) -> Any:
        rows = self._store.rows[source]  # (B, 4, M, 6)
        x1, y1, x2, y2, score, number = rows.unbind(-1)
        width = size[..., 0, None]
        flip = mirror[..., None]
        x1, x2 = torch.where(flip, width - x2, x1), torch.where(flip, width - x1, x2)
        sx, sy, tx, ty = scale[..., 0, None], scale[..., 1, None], shift[..., 0, None], shift[..., 1, None]
        x1, x2, y1, y2 = x1 * sx + tx, x2 * sx + tx, y1 * sy + ty, y2 * sy + ty
        area = (x2 - x1) * (y2 - y1)
        x1, x2 = (torch.clamp(v, start[..., 0, None], end[..., 0, None]) for v in (x1, x2))
        y1, y2 = (torch.clamp(v, start[..., 1, None], end[..., 1, None]) for v in (y1, y2))
        seen = (x2 - x1) * (y2 - y1) / area.clamp(min=1e-6)
        # An object that is less than a quarter visible is not labelled; from a quarter to a half, it counts in part.
        score = score * ((seen - 0.15) / 0.35).clamp(0, 1) * (seen > 0.25) * (x2 - x1 > 2) * (y2 - y1 > 2)
        return torch.stack([x1, y1, x2, y2, score, number], -1).flatten(1, 2)

    def _colours(self, batch: int) -> Any:
        """One linear map of RGB a picture (B, 3, 4): hue turned in YIQ, saturation, brightness, contrast."""
        s = self._store
        hue, stretch, light, spread, grey = self._levels[6:11].unbind()
        angle = s.normal(batch) * hue
        # Evenly spread around 1, both ways.
        saturation = 1 + s.uniform(batch, low=-1) * stretch
        saturation = torch.where(s.uniform(batch) < grey, torch.zeros_like(saturation), saturation)
        zero, one = torch.zeros_like(angle), torch.ones_like(angle)
        turn = torch.stack([
            torch.stack([one, zero, zero], -1),
            torch.stack([zero, angle.cos() * saturation, -angle.sin() * saturation], -1),
            torch.stack([zero, angle.sin() * saturation, angle.cos() * saturation], -1),
        ], 1)  # fmt: skip
        brightness = 1 + s.uniform(batch, low=-1) * light
        contrast = 1 + s.uniform(batch, low=-1) * spread
        matrix = self._rgb @ turn @ self._yiq * (brightness * contrast)[:, None, None]
        offset = (0.45 * (1 - contrast) * brightness)[:, None, None].expand(-1, 3, 1)
        return torch.cat([matrix, offset], -1)
