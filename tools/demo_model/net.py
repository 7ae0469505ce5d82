"""The network: YOLOv5's layers (release 6) with ReLU and one anchor a cell, and what its outputs mean."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from demo_model import ANCHORS, CLASSES, SIZE, STRIDES

ROW = 5 + len(CLASSES)


class Conv(nn.Module):  # type: ignore[misc]
    """Convolution, batch normalisation, ReLU."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 1, stride: int = 1, pad: int | None = None) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2 if pad is None else pad, bias=False)
        self.bn = nn.BatchNorm2d(outputs, eps=1e-3, momentum=0.03)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: Any) -> Any:
        """(B, inputs, H, W) to (B, outputs, H / stride, W / stride)."""
        return self.act(self.bn(self.conv(x)))


class Bottleneck(nn.Module):  # type: ignore[misc]
    """Two convolutions, added to their input where `shortcut`."""

    def __init__(self, channels: int, *, shortcut: bool) -> None:
        super().__init__()
        self.cv1, self.cv2, self.shortcut = Conv(channels, channels), Conv(channels, channels, 3), shortcut

    def forward(self, x: Any) -> Any:
        """Keeps the shape."""
        y = self.cv2(self.cv1(x))
        return x + y if self.shortcut else y


class C3(nn.Module):  # type: ignore[misc]
    """Cross-stage partial block: half the channels go through bottlenecks."""

    def __init__(self, inputs: int, outputs: int, depth: int, *, shortcut: bool = True) -> None:
        super().__init__()
        half = outputs // 2
        self.cv1, self.cv2, self.cv3 = Conv(inputs, half), Conv(inputs, half), Conv(2 * half, outputs)
        self.m = nn.Sequential(*(Bottleneck(half, shortcut=shortcut) for _ in range(depth)))

    def forward(self, x: Any) -> Any:
        """(B, inputs, H, W) to (B, outputs, H, W)."""
        return self.cv3(torch.cat([self.m(self.cv1(x)), self.cv2(x)], 1))


class SPPF(nn.Module):  # type: ignore[misc]
    """Three poolings, one after the other, beside their input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.cv1, self.cv2 = Conv(channels, channels // 2), Conv(channels * 2, channels)
        self.pool = nn.MaxPool2d(5, 1, 2)

    def forward(self, x: Any) -> Any:
        """Keeps the shape."""
        x = self.cv1(x)
        a = self.pool(x)
        b = self.pool(a)
        return self.cv2(torch.cat([x, a, b, self.pool(b)], 1))


class Detector(nn.Module):  # type: ignore[misc]
    """The whole network: three heads (B, 1, H, W, ROW) of logits, finest first.

    Args:
        width: channels as a share of YOLOv5l's; YOLOv5n has 0.25.
        depth: bottlenecks likewise; YOLOv5n has 0.33.
    """

    def __init__(self, width: float = 0.25, depth: float = 0.33) -> None:
        super().__init__()
        self.width, self.depth = width, depth
        a, b, c, d, e = (max(8, round(n * width / 8) * 8) for n in (64, 128, 256, 512, 1024))
        once, twice, thrice = (max(1, round(n * depth)) for n in (3, 6, 9))
        self.stem = Conv(3, a, 6, 2, 2)
        self.p2 = nn.Sequential(Conv(a, b, 3, 2), C3(b, b, once))
        self.p3 = nn.Sequential(Conv(b, c, 3, 2), C3(c, c, twice))
        self.p4 = nn.Sequential(Conv(c, d, 3, 2), C3(d, d, thrice))
        self.p5 = nn.Sequential(Conv(d, e, 3, 2), C3(e, e, once), SPPF(e))
        self.up = nn.Upsample(scale_factor=2.0, mode="nearest")
        self.lateral5, self.lateral4 = Conv(e, d), Conv(d, c)
        self.top4, self.top3 = C3(2 * d, d, once, shortcut=False), C3(2 * c, c, once, shortcut=False)
        self.down3, self.down4 = Conv(c, c, 3, 2), Conv(d, d, 3, 2)
        self.out4, self.out5 = C3(2 * c, d, once, shortcut=False), C3(2 * d, e, once, shortcut=False)
        self.channels = (c, d, e)
        self.heads = nn.ModuleList(nn.Conv2d(n, ROW, 1) for n in (c, d, e))
        for head in self.heads:
            nn.init.normal_(head.weight, std=0.01)
            nn.init.zeros_(head.bias)
            nn.init.constant_(head.bias[4:5], -4.6)  # one cell in a hundred holds something
            nn.init.constant_(head.bias[5:], -1.6)

    def neck(self, x: Any) -> tuple[Any, Any, Any]:
        """(B, 3, SIZE, SIZE) 0..1 to what the heads read, at stride 8, 16 and 32."""
        p3 = self.p3(self.p2(self.stem(x)))
        p4 = self.p4(p3)
        lateral5 = self.lateral5(self.p5(p4))
        lateral4 = self.lateral4(self.top4(torch.cat([self.up(lateral5), p4], 1)))
        n3 = self.top3(torch.cat([self.up(lateral4), p3], 1))
        n4 = self.out4(torch.cat([self.down3(n3), lateral4], 1))
        n5 = self.out5(torch.cat([self.down4(n4), lateral5], 1))
        return n3, n4, n5

    def forward(self, x: Any) -> list[Any]:
        """(B, 3, SIZE, SIZE) 0..1 to the heads' logits."""
        found = [head(n) for head, n in zip(self.heads, self.neck(x), strict=True)]
        return [
            y.view(-1, 1, ROW, SIZE // s, SIZE // s).permute(0, 1, 3, 4, 2) for y, s in zip(found, STRIDES, strict=True)
        ]


class Grid:
    """Where each cell of the three heads is, all in one row of N cells, on a device."""

    def __init__(self, device: str) -> None:
        x, y, stride, anchor = [], [], [], []
        for s, a in zip(STRIDES, ANCHORS, strict=True):
            n = SIZE // s
            row, column = torch.meshgrid(torch.arange(n), torch.arange(n), indexing="ij")
            x.append(column.flatten())
            y.append(row.flatten())
            stride.append(torch.full((n * n,), float(s)))
            anchor.append(torch.full((n * n,), a))
        self.cell = torch.stack([torch.cat(x), torch.cat(y)], -1).float().to(device)
        self.stride, self.anchor = torch.cat(stride)[:, None].to(device), torch.cat(anchor)[:, None].to(device)

    def part(self, first: int) -> Grid:
        """The cells from `first` on."""
        part = copy.copy(self)
        part.cell, part.stride, part.anchor = self.cell[first:], self.stride[first:], self.anchor[first:]
        return part

    def boxes(self, rows: Any) -> Any:
        """Decodes logits (B, N, ROW) as YOLOv5 does: corners in input pixels (B, N, 4)."""
        share = rows[..., :4].sigmoid()
        centre = (share[..., :2] * 2 - 0.5 + self.cell) * self.stride
        half = (share[..., 2:] * 2).square() * self.anchor / 2
        return torch.cat([centre - half, centre + half], -1)


def flat(heads: list[Any]) -> Any:
    """The heads' logits as one float32 (B, N, ROW)."""
    return torch.cat([h.flatten(1, 3) for h in heads], 1).float()
