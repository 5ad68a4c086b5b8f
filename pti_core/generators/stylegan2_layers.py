"""The layers of StyleGAN2 (Karras et al. 2020, arXiv 1912.04958) in plain torch, for many images at once.

Modulation scales the input and demodulation the output of one ordinary convolution, instead of a convolution a
sample with weights of its own: the same function (section 2.2 of the paper says so), one kernel for the whole batch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pti_core.generators.half import HALF_CLAMP, HalfPass, balanced
from pti_core.generators.mapping import FullyConnectedLayer
from pti_core.matmul import convolution

TAPS = (1, 3, 3, 1)  # of the usual filter
LRELU_SLOPE, LRELU_GAIN = 0.2, math.sqrt(2)
DEMODULATION_EPS = 1e-8


def fir_kernel(taps: Sequence[float]) -> Tensor:
    """The separable low-pass filter as a `[k, k]` kernel that sums to one."""
    kernel = torch.tensor(list(taps), dtype=torch.float32)
    kernel = torch.outer(kernel, kernel)
    return kernel / kernel.sum()


def fir(x: Tensor, kernel: Tensor, padding: tuple[int, int], gain: float = 1.0) -> Tensor:
    """Filter every channel of x `[N, C, H, W]`; padding (before, after) on both axes."""
    channels = x.shape[1]
    weight = (kernel * gain).to(x.dtype)[None, None].expand(channels, 1, -1, -1)
    return F.conv2d(F.pad(x, [*padding, *padding]), weight, groups=channels)


def upsample2d(x: Tensor, kernel: Tensor) -> Tensor:
    """Twice the resolution: zeros between the pixels, then the filter with gain 4."""
    channels, taps = x.shape[1], kernel.shape[0]
    weight = (kernel * 4).to(x.dtype)[None, None].expand(channels, 1, -1, -1)
    # A transposed convolution inserts the zeros; it spreads taps - 2 pixels too far in all, more of them at the end.
    full = F.conv_transpose2d(x, weight.flip(2, 3), stride=2, groups=channels)
    begin = (taps - 1) // 2
    return full[:, :, begin : begin + 2 * x.shape[2], begin : begin + 2 * x.shape[3]]


def clamped(x: Tensor, limit: float | None, half: HalfPass | None, gain: float = 1.0) -> Tensor:
    """Clip to the layer's limit (`conv_clamp`), where it has one; in half precision every layer has, to stay finite."""
    limit = HALF_CLAMP if limit is None and half is not None else limit
    return x if limit is None else x.clamp(-limit * gain, limit * gain)


class SynthesisLayer(nn.Module):
    """Modulated 3x3 convolution, perhaps with upsampling; noise, bias, leaky ReLU."""

    noise_const: Tensor
    resample_filter: Tensor

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        w_dim: int,
        resolution: int,
        kernel_size: int = 3,
        up: int = 1,
        use_noise: bool = True,
        activation: str = "lrelu",
        resample_filter: Sequence[float] = TAPS,
        conv_clamp: float | None = None,
    ) -> None:
        super().__init__()
        if activation not in ("lrelu", "linear"):
            raise ValueError(f"activation {activation!r}: 'lrelu' or 'linear' expected")
        self.resolution, self.up, self.use_noise, self.conv_clamp = resolution, up, use_noise, conv_clamp
        self.activation, self.padding = activation, kernel_size // 2
        self.affine = FullyConnectedLayer(w_dim, in_channels, bias_init=1.0)
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, kernel_size, kernel_size))
        if use_noise:
            self.register_buffer("noise_const", torch.randn(resolution, resolution))
            self.noise_strength = nn.Parameter(torch.zeros([]))
        self.bias = nn.Parameter(torch.zeros(out_channels))
        self.register_buffer("resample_filter", fir_kernel(resample_filter))

    def forward(
        self, x: Tensor, w: Tensor, noise: Tensor | None, gain: float = 1.0, half: HalfPass | None = None
    ) -> Tensor:
        """Map x `[N, in, H, W]` under w `[N, w_dim]`, noise `[N or 1, 1, R, R]`, to `[N, out, R, R]`.

        Float32 in, float32 out, but with `half` x and the result are in its dtype; w and noise never are.
        """
        weight: Tensor = self.weight
        bias: Tensor = self.bias
        styles = self.affine(w)
        energy = weight.square().sum(dim=(2, 3))  # [out, in]
        demodulation = (styles.square() @ energy.T + DEMODULATION_EPS).rsqrt()
        noise = None if noise is None else noise * self.noise_strength
        if half is not None:
            styles, weight, demodulation = map(half.enter, balanced(styles, weight, demodulation))
            noise, bias = None if noise is None else half.enter(noise), half.enter(bias)
        x = x * styles[:, :, None, None]
        if self.up == 2:
            # Stride-2 transposed convolution, then the filter; together they keep the image where it was.
            x = F.conv_transpose2d(x, weight.transpose(0, 1), stride=2)
            total = x.shape[2] + self.resample_filter.shape[0] - 1 - self.resolution
            before = self.resample_filter.shape[0] - 1 - total // 2
            x = fir(x, self.resample_filter, (before, self.resample_filter.shape[0] - 1 - (total - total // 2)), gain=4)
        else:
            x = convolution(x, weight, padding=self.padding)
        x = x * demodulation[:, :, None, None]
        if noise is not None:
            x = x + noise
        x = x + bias[None, :, None, None]
        if self.activation == "lrelu":
            x = F.leaky_relu(x, LRELU_SLOPE) * (LRELU_GAIN * gain)
        else:
            x = x * gain
        return clamped(x, self.conv_clamp, half, gain)


class ToRGBLayer(nn.Module):
    """Modulated 1x1 convolution without demodulation, to image channels."""

    def __init__(
        self, in_channels: int, out_channels: int, w_dim: int, kernel_size: int = 1, conv_clamp: float | None = None
    ) -> None:
        super().__init__()
        self.conv_clamp, self.padding = conv_clamp, kernel_size // 2
        self.affine = FullyConnectedLayer(w_dim, in_channels, bias_init=1.0)
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, kernel_size, kernel_size))
        self.bias = nn.Parameter(torch.zeros(out_channels))
        self.weight_gain = 1 / math.sqrt(in_channels * kernel_size**2)

    def forward(self, x: Tensor, w: Tensor, half: HalfPass | None = None) -> Tensor:
        """Map x `[N, in, R, R]` (in the dtype of `half`) to `[N, img_channels, R, R]`, float32."""
        weight: Tensor = self.weight
        bias: Tensor = self.bias
        styles = self.affine(w) * self.weight_gain
        if half is not None:
            styles, weight, bias = map(half.enter, (styles, weight, bias))
        x = x * styles[:, :, None, None]
        x = convolution(x, weight, bias, self.padding)
        x = clamped(x, self.conv_clamp, half)
        return x if half is None else half.leave(x)


class SkipConv(nn.Module):
    """The residual path of the `resnet` architecture: upsample, 1x1 convolution, no bias, no activation."""

    resample_filter: Tensor

    def __init__(self, in_channels: int, out_channels: int, resample_filter: Sequence[float]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, 1, 1))
        self.register_buffer("resample_filter", fir_kernel(resample_filter))
        self.weight_gain = 1 / math.sqrt(in_channels)

    def forward(self, x: Tensor, gain: float = 1.0, half: HalfPass | None = None) -> Tensor:
        """Map x `[N, in, H, W]` to `[N, out, 2H, 2W]`, in the dtype of `half` or float32."""
        weight: Tensor = self.weight  # as it is, so that `bases` knows the layer by it
        x = x * (self.weight_gain * gain)
        # The 1x1 convolution first: it and the filter act on different axes, and at low resolution it is cheaper.
        return upsample2d(convolution(x, weight if half is None else half.enter(weight)), self.resample_filter)
