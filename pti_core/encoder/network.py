"""The encoder: features of LPIPS's frozen net on a small grid, and a compact head that gives w.

Only the head is trained and stored. Its first layer is a fixed projection on the principal components of the features,
so that what training sees is small enough to be kept in memory, and computed once.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pti_core.perceptual import LPIPS, area_downsample

MAX_RESOLUTION = 256  # pixels; larger images are reduced before their features are made
MAX_GRID = 8
CELL = 4  # a cell of the grid holds 4 x 4 colours beside the net's features
FEATURE_CHANNELS = 64 + 192 + 384 + 256 + 256 + 3 * CELL**2  # AlexNet's five layers, and the colours


@dataclass(frozen=True)
class EncoderShape:
    """The architecture: all that `Encoder(shape)` needs."""

    img_resolution: int
    img_channels: int
    w_dim: int
    components: int = 256  # principal components of the features of a cell
    squeezed: int = 48  # channels of a cell after the first trained layer
    hidden: int = 640

    @property
    def grid(self) -> int:
        """Cells along a side: one for 16 pixels, 2 at least and 8 at most."""
        return max(2, min(MAX_GRID, self.img_resolution // 16))

    def as_dict(self) -> dict[str, Any]:
        """JSON types only."""
        return asdict(self)


def grid_features(lpips: LPIPS, images: Tensor, grid: int) -> Tensor:
    """Features `[N, 1200, grid, grid]` of images `[N, 1 or 3, H, W]` in [-1, 1]: every layer of the net, and colours.

    A layer's features have unit length at every place (as in LPIPS), and are averaged over each cell of the grid.
    """
    images = area_downsample(images, MAX_RESOLUTION)
    if images.shape[1] == 1:
        images = images.expand(-1, 3, -1, -1)
    x, found = (images - lpips.shift) / lpips.scale, []
    for part in lpips.slices:
        x = part(x)
        found.append(F.adaptive_avg_pool2d(F.normalize(x, dim=1), grid))
    colours = F.pixel_unshuffle(F.adaptive_avg_pool2d(images, grid * CELL), CELL)
    return torch.cat([*found, colours], dim=1)


class Encoder(nn.Module):
    """A head on `grid_features`; `forward` takes projected features, `w_of` images."""

    feature_mean: Tensor  # [FEATURE_CHANNELS]
    projection: Tensor  # [components, FEATURE_CHANNELS], features to principal components of about unit variance
    w_avg: Tensor  # [w_dim]
    w_std: Tensor  # []

    def __init__(self, shape: EncoderShape) -> None:
        super().__init__()
        self.shape = shape
        self.register_buffer("feature_mean", torch.zeros(FEATURE_CHANNELS))
        self.register_buffer("projection", torch.zeros(shape.components, FEATURE_CHANNELS))
        self.register_buffer("w_avg", torch.zeros(shape.w_dim))
        self.register_buffer("w_std", torch.ones([]))
        cells = shape.grid**2
        self.squeeze = nn.Conv2d(shape.components, shape.squeezed, 1)
        self.linear = nn.Linear(shape.squeezed * cells, shape.hidden)
        self.output = nn.Linear(shape.hidden, shape.w_dim)
        self.dropout = nn.Dropout(0.1)

    def project(self, features: Tensor) -> Tensor:
        """Principal components `[N, components, grid, grid]` of features `[N, channels, grid, grid]`."""
        return torch.einsum("kc,nchw->nkhw", self.projection, features - self.feature_mean[:, None, None])

    def forward(self, components: Tensor) -> Tensor:
        """W `[N, w_dim]` of principal components `[N, components, grid, grid]`."""
        x = F.gelu(self.squeeze(components)).flatten(1)
        x = F.gelu(self.linear(self.dropout(x)))
        return self.w_avg + self.w_std * self.output(self.dropout(x))

    def w_of(self, images: Tensor, lpips: LPIPS) -> Tensor:
        """W `[N, w_dim]` of images `[N, img_channels, H, W]` in [-1, 1]; differentiable."""
        return self(self.project(grid_features(lpips, images, self.shape.grid)))
