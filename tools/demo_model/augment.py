"""Training pictures made on the device: mosaic, scale, shift, mirror, colour, mixing. No step waits for the host.

Every output pixel looks up its own source pixel, so a mosaic of four costs as much as one picture. Labels follow as a
table of fixed size: rows x1 y1 x2 y2 score class in output pixels, score 0 where there is none.
"""

from __future__ import annotations

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
        self.generator = torch.Generator(device).manual_seed(seed)

    def uniform(self, *shape: int, low: float = 0.0, high: float = 1.0) -> Any:
        """Random numbers on the device."""
        return torch.rand(shape, generator=self.generator, device=self.device) * (high - low) + low

    def normal(self, *shape: int) -> Any:
        """Random numbers on the device."""
        return torch.randn(shape, generator=self.generator, device=self.device)


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
        compiled: fuse the pixel arithmetic with torch.compile.
    """

    def __init__(self, store: Store, *, compiled: bool = False) -> None:
        self._store, self.device = store, store.device
        self._look_up = torch.compile(_look_up) if compiled else _look_up
        # Constants live on the device: making one there is a copy that the host waits for.
        self._second = torch.tensor([[0, 0], [1, 0], [0, 1], [1, 1]], device=store.device) == 1
        yiq = torch.tensor([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])
        self._yiq, self._rgb = yiq.to(store.device), torch.linalg.inv(yiq).to(store.device)

    def __call__(self, batch: int, strength: Strength) -> tuple[Any, Any]:
        """Draws a batch.

        Returns:
            Pictures (B, 3, SIZE, SIZE) 0..1 and rows (B, R, 6) in output pixels.
        """
        s = self._store
        source = torch.searchsorted(s.drawn, s.uniform(batch, 4)).clamp(max=s.count - 1)
        mosaic = s.uniform(batch) < strength.mosaic
        # A picture that is no mosaic is one whose centre is the lower right corner: the first tile is all there is.
        centre = torch.where(mosaic[:, None], s.uniform(batch, 2, low=0.25, high=0.75) * SIZE, float(SIZE))
        start = torch.where(self._second, centre[:, None], 0.0)
        end = torch.where(self._second, float(SIZE), centre[:, None])
        size = s.sizes[source]
        share = s.uniform(batch, 4)
        (a, b), (c, d) = strength.mosaic_scale, strength.scale
        zoom = torch.where(mosaic[:, None], a * (b / a) ** share, c * (d / c) ** share)
        aspect = torch.exp(s.normal(batch, 4) * (strength.aspect / 2))
        zoom = zoom * SIZE / size.amax(-1)
        scale = torch.stack([zoom * aspect, zoom / aspect], -1)
        shift = start + s.uniform(batch, 4, 2) * (end - start - size * scale)
        mirror = s.uniform(batch, 4) < 0.5
        halved = zoom < 0.6
        at = torch.where(halved, s.half_at + source * (SIDE // 2) ** 2, source * SIDE**2)
        row = torch.where(halved, SIDE // 2, SIDE)
        level = torch.where(halved, 0.5, 1.0)[..., None]
        pictures = self._look_up(
            s.pixels, at, row, (size * level).floor().clamp(min=1), scale / level, shift, mirror, centre,
            self._colours(batch, strength),
        )  # fmt: skip
        rows = self._rows(source, size, scale, shift, mirror, start, end)
        mixed = int(batch * strength.mixup)
        if mixed:
            share = s.uniform(mixed, 1, 1, 1, low=0.4, high=0.6)
            other = pictures[-mixed:]
            pictures = torch.cat([pictures[:mixed] * share + other * (1 - share), pictures[mixed:]])
            extra = torch.zeros_like(rows)
            extra[:mixed] = rows[-mixed:]
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
        pictures = self._look_up(s.pixels, source * SIDE**2, row, size, scale, shift, mirror, centre, colour)
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

    def _colours(self, batch: int, strength: Strength) -> Any:
        """One linear map of RGB a picture (B, 3, 4): hue turned in YIQ, saturation, brightness, contrast."""
        s = self._store
        angle = s.normal(batch) * strength.hue
        # Evenly spread around 1, both ways.
        saturation = 1 + s.uniform(batch, low=-1) * strength.saturation
        saturation = torch.where(s.uniform(batch) < strength.grey, torch.zeros_like(saturation), saturation)
        zero, one = torch.zeros_like(angle), torch.ones_like(angle)
        turn = torch.stack([
            torch.stack([one, zero, zero], -1),
            torch.stack([zero, angle.cos() * saturation, -angle.sin() * saturation], -1),
            torch.stack([zero, angle.sin() * saturation, angle.cos() * saturation], -1),
        ], 1)  # fmt: skip
        brightness = 1 + s.uniform(batch, low=-1) * strength.brightness
        contrast = 1 + s.uniform(batch, low=-1) * strength.contrast
        matrix = self._rgb @ turn @ self._yiq * (brightness * contrast)[:, None, None]
        offset = (0.45 * (1 - contrast) * brightness)[:, None, None].expand(-1, 3, 1)
        return torch.cat([matrix, offset], -1)
