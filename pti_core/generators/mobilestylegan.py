"""MobileStyleGAN (Belousov 2021, arXiv 2104.04767): StyleGAN2's W with depthwise convolutions in the Haar domain.

The full network draws 1024 x 1024; the same class with fewer blocks is the pocket generator: each block doubles the
resolution by an inverse Haar transform, and a modulated 1x1 head turns the last features into 12 Haar bands, hence
an image twice as large as them. Demodulation is baked into the pointwise weights, as in the published network.

All weights are stored with equalised learning rate (about unit variance, gain applied in use), so that a learning
rate means the same here as in StyleGAN2; the published network has none, and 3e-4 bites much harder there.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pti_core.generators.base import NoiseMode, Style
from pti_core.generators.half import Precision
from pti_core.generators.mapping import FullyConnectedLayer, MappingNetwork
from pti_core.generators.network import GeneratorNetwork
from pti_core.generators.noise import noise_maps
from pti_core.machine.matmul import convolution

LRELU_SLOPE = 0.2  # of every leaky ReLU; the published network has no sqrt(2) gain after it


def inverse_haar(x: Tensor) -> Tensor:
    """Inverse 2-D Haar transform: `[N, 4C, H, W]` to `[N, C, 2H, 2W]`.

    The first C channels are the low band, the rest C groups of (vertical, horizontal, diagonal) detail. The result
    is in the input's memory format.
    """
    n, channels, h, w = x.shape
    c, last = channels // 4, not x.is_contiguous()
    at = -1 if last else 1  # of the channels: last where they are so in memory, for gradients keep to that layout then
    low, details = x.movedim(1, at).split([c, 3 * c], at)
    vertical, horizontal, diagonal = details.unflatten(at, (c, 3)).unbind(-1 if last else 2)
    # Rows first (even: sum, odd: difference), then columns; each of the two steps divides by sqrt(2).
    even, odd = low + vertical, low - vertical
    even_detail, odd_detail = horizontal + diagonal, horizontal - diagonal
    rows = [(even + even_detail, even - even_detail), (odd + odd_detail, odd - odd_detail)]
    column = 3 if last else 4
    whole = torch.stack([torch.stack(row, dim=column) for row in rows], dim=column - 1)
    shape = (n, 2 * h, 2 * w, c) if last else (n, c, 2 * h, 2 * w)
    return whole.reshape(shape).movedim(at, 1) * 0.5


class StyledConv(nn.Module):
    """Modulate the input, convolve (3x3, or depthwise 3x3 and 1x1), add noise and bias, leaky ReLU."""

    noise_const: Tensor

    def __init__(self, in_channels: int, out_channels: int, w_dim: int, resolution: int, separable: bool) -> None:
        super().__init__()
        self.resolution, self.separable = resolution, separable
        self.affine = FullyConnectedLayer(w_dim, in_channels, bias_init=1.0)
        if separable:
            self.depthwise = nn.Parameter(torch.randn(in_channels, 1, 3, 3))
            self.pointwise = nn.Parameter(torch.randn(out_channels, in_channels, 1, 1))
            self.gain = 1 / math.sqrt(9 * in_channels) / math.sqrt(in_channels)
        else:
            self.weight = nn.Parameter(torch.randn(out_channels, in_channels, 3, 3))
            self.gain = 1 / math.sqrt(9 * in_channels)
        self.bias = nn.Parameter(torch.zeros(out_channels))
        self.noise_strength = nn.Parameter(torch.zeros([]))
        self.register_buffer("noise_const", torch.randn(resolution, resolution))

    def forward(self, x: Tensor, w: Tensor, noise: Tensor | None) -> Tensor:
        """Map x `[N, in, H, W]` under w `[N, w_dim]`, noise `[N or 1, 1, H, W]`, to `[N, out, H, W]`.

        In the dtype of x; w, noise and weights are float32.
        """
        # Every gain is linear, so all of them are applied where the tensor is smallest: on the style, and with it on
        # the depthwise kernels, where one image has them for itself.
        style, bias = (self.affine(w) * self.gain)[:, :, None, None], self.bias.to(x.dtype)
        kernels = self.depthwise if self.separable else None
        if kernels is not None and len(w) == 1:
            kernels = kernels * style[0, :, None]
        else:
            x = x * style.to(x.dtype)
        if kernels is not None:
            x = F.conv2d(x, kernels.to(x.dtype), padding=1, groups=x.shape[1])
            x = convolution(x, self.pointwise.to(x.dtype), bias)
        else:
            x = convolution(x, self.weight.to(x.dtype), bias, padding=1)
        if noise is not None:
            x = x.add_((noise * self.noise_strength).to(x.dtype))
        return F.leaky_relu_(x, LRELU_SLOPE)  # in place: nothing before it keeps this tensor for its gradient


class Block(nn.Module):
    """Modulated inverse Haar transform (channels / 4, resolution * 2), then two separable convolutions."""

    def __init__(self, in_channels: int, out_channels: int, w_dim: int, resolution: int) -> None:
        super().__init__()
        self.up = FullyConnectedLayer(w_dim, in_channels, bias_init=1.0)
        self.conv0 = StyledConv(in_channels // 4, out_channels, w_dim, resolution, separable=True)
        self.conv1 = StyledConv(out_channels, out_channels, w_dim, resolution, separable=True)

    def forward(self, x: Tensor, ws: Sequence[Tensor], noise: Sequence[Tensor | None]) -> Tensor:
        """Map x `[N, in, H, W]` under three w `[N, w_dim]` and two noise maps to `[N, out, 2H, 2W]`."""
        x = inverse_haar(x * self.up(ws[0])[:, :, None, None].to(x.dtype))
        x = self.conv0(x, ws[1], noise[0])
        return self.conv1(x, ws[2], noise[1])


class Head(nn.Module):
    """Modulated 1x1 convolution to the Haar bands of the image, and the inverse transform."""

    def __init__(self, in_channels: int, img_channels: int, w_dim: int) -> None:
        super().__init__()
        self.affine = FullyConnectedLayer(w_dim, in_channels, bias_init=1.0)
        self.weight = nn.Parameter(torch.randn(4 * img_channels, in_channels, 1, 1))
        self.bias = nn.Parameter(torch.zeros(4 * img_channels))
        self.gain = 1 / math.sqrt(in_channels)

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        """Map x `[N, in, H, W]` to images `[N, img_channels, 2H, 2W]`, in the weights' dtype."""
        x = x * (self.affine(w) * self.gain)[:, :, None, None].to(x.dtype)
        bands = convolution(x, self.weight.to(x.dtype), self.bias.to(x.dtype))
        return inverse_haar(bands.to(self.weight.dtype))


class MobileSynthesis(nn.Module):
    """g(w, n): constant 4x4 input, one dense convolution, the blocks, the head."""

    def __init__(self, w_dim: int, channels: Sequence[int], img_channels: int) -> None:
        super().__init__()
        self.w_dim = w_dim
        self.precision: Precision = "fp32"
        self.resolutions = [4 * 2**i for i in range(len(channels))]
        self.const = nn.Parameter(torch.randn(channels[0], 4, 4))
        self.conv = StyledConv(channels[0], channels[0], w_dim, 4, separable=False)
        for resolution, c_in, c_out in zip(self.resolutions[1:], channels[:-1], channels[1:], strict=True):
            setattr(self, f"b{resolution}", Block(c_in, c_out, w_dim, resolution))
        self.head = Head(channels[-1], img_channels, w_dim)
        self.num_ws = 3 * len(channels) - 1  # one, three a block, one for the head

    @property
    def blocks(self) -> list[Block]:
        """The blocks, coarse to fine."""
        return [getattr(self, f"b{r}") for r in self.resolutions[1:]]

    @property
    def layers(self) -> list[StyledConv]:
        """The layers that take a noise map, in its order."""
        return [self.conv, *(conv for block in self.blocks for conv in (block.conv0, block.conv1))]

    def features(self, ws: Tensor, noise: Sequence[Tensor | None]) -> Tensor:
        """What the head sees: `[N, channels[-1], H/2, W/2]`, in half precision bf16 with channels last in memory."""
        x = self.const[None].expand(len(ws), -1, -1, -1)
        if self.precision != "fp32":
            # By permutations: `memory_format` knows no tensors of vmap, which stacks draw with.
            x = x.to(torch.bfloat16).permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
        x = self.conv(x, ws[:, 0], noise[0])
        for i, block in enumerate(self.blocks):
            x = block(x, ws[:, 1 + 3 * i : 4 + 3 * i].unbind(1), noise[1 + 2 * i : 3 + 2 * i])
        return x

    def forward(self, ws: Tensor, noise_mode: NoiseMode = "const", noise: Sequence[Tensor] | None = None) -> Tensor:
        """Draw `[N, img_channels, H, W]`, about [-1, 1], from ws `[N, num_ws, w_dim]`.

        `noise`: one `[N or 1, 1, H, W]` map a layer, unit variance; overrides `noise_mode`.
        Raises ValueError where ws, the mode or the maps do not fit.
        """
        if ws.ndim != 3 or ws.shape[1:] != (self.num_ws, self.w_dim):
            raise ValueError(f"ws of shape {list(ws.shape)}: [N, {self.num_ws}, {self.w_dim}] expected")
        return self.head(self.features(ws, noise_maps(self.layers, len(ws), noise_mode, noise)), ws[:, -1])


class MobileStyleGAN(GeneratorNetwork):
    """The whole generator; fulfils `pti_core.generators.base.Generator`.

    channels: features after the 4x4 input and after each block. The published network has
    [512, 512, 512, 512, 512, 256, 128, 64] and draws 1024 x 1024; the pocket generator stops after the fifth.
    """

    kind = "mobilestylegan"
    c_dim = 0

    def __init__(
        self, channels: Sequence[int], z_dim: int = 512, w_dim: int = 512, img_channels: int = 3, num_layers: int = 8
    ) -> None:
        super().__init__()
        if len(channels) < 2 or any(c < 4 or c % 4 for c in channels):
            raise ValueError(f"channels {list(channels)}: at least two multiples of 4 expected")
        self.z_dim, self.w_dim, self.img_channels = z_dim, w_dim, img_channels
        self.channels, self.num_layers = list(channels), num_layers
        self.img_resolution = 4 * 2 ** len(channels)
        self.synthesis = MobileSynthesis(w_dim, self.channels, img_channels)
        self.num_ws = self.synthesis.num_ws
        self.mapping = MappingNetwork(z_dim, 0, w_dim, self.num_ws, num_layers)

    def with_precision(self, precision: Precision) -> Self:
        """The same generator, its weights shared, in float32, or all of its synthesis in bf16, which is `half` here.

        Weights, images, gradients and files stay float32. Raises ValueError for fp16, whose range is too small for a
        network that was not trained in it, and for another word.
        """
        if precision == "fp16":
            raise ValueError(f"precision 'fp16': a {self.kind} draws in half precision as 'bf16' only")
        return super().with_precision(precision)

    @property
    def config(self) -> Mapping[str, Any]:
        """The constructor's arguments."""
        return {
            "channels": self.channels,
            "z_dim": self.z_dim,
            "w_dim": self.w_dim,
            "img_channels": self.img_channels,
            "num_layers": self.num_layers,
        }

    def resolution_outside(self, name: str) -> int:
        """The input and its convolution are at 4x4; the head works on the last block's features."""
        return self.synthesis.resolutions[-1 if name.startswith("synthesis.head.") else 0]

    def styles(self) -> list[Style]:
        """Of the first convolution, of three affines a block, and of the head."""
        net = self.synthesis
        found = [Style(net.conv.resolution, net.conv.affine.weight)]
        for block in net.blocks:
            affines = (block.up, block.conv0.affine, block.conv1.affine)
            found += [Style(block.conv0.resolution, affine.weight) for affine in affines]
        return [*found, Style(self.img_resolution, net.head.affine.weight)]
