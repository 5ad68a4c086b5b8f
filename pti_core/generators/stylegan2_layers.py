"""The layers of StyleGAN2 (Karras et al. 2020, arXiv 1912.04958) in plain torch, for many images at once.

Modulation scales either the weights of a convolution, or its input and (demodulation) its output: the same function
(section 2.2 of the paper says so). Scaled features are one convolution for a whole batch; scaled weights are one an
image, and read and write no map of features, which at 1024 pixels takes as long as a convolution. So one image alone is
drawn with scaled weights, and several are with scaled features; see `scales_weights`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn import functional as F
from torch.overrides import handle_torch_function, has_torch_function

from pti_core.generators.half import FINITE, HALF_CLAMP, HalfPass, balanced
from pti_core.generators.mapping import FullyConnectedLayer
from pti_core.generators.resampling import TAPS, fir, fir_kernel, upsample2d
from pti_core.machine.matmul import convolution, own_functions

LRELU_SLOPE, LRELU_GAIN = 0.2, math.sqrt(2)
DEMODULATION_EPS = 1e-8
SMALLEST_STYLE = 1e-6


def limit_of(conv_clamp: float | None, half: HalfPass | None) -> float | None:
    """Where a layer's output is clipped: at its `conv_clamp`; in half precision every layer's is, to stay finite."""
    return HALF_CLAMP if conv_clamp is None and half is not None else conv_clamp


def clipped(x: Tensor, limit: float | None) -> Tensor:
    """x within +-limit, where there is one."""
    return x if limit is None else x.clamp(-limit, limit)


def leaky_relu(x: Tensor, limit: float | None) -> Tensor:
    """The leaky ReLU of x, within +-limit where there is one; x is not to be used any more."""
    if limit is None:
        return F.leaky_relu_(x, LRELU_SLOPE)
    if not own_functions():
        return clipped(F.leaky_relu(x, LRELU_SLOPE), limit)
    # As x's type rounds it, so that the gradient knows what was clipped.
    return _ClippedLeakyReLU.apply(x, torch.tensor(limit, dtype=x.dtype).item())


class _ClippedLeakyReLU(Function):
    """Its gradient needs the result alone, which what comes next keeps anyway; `clamp`'s would need a second map."""

    @staticmethod
    def forward(x: Tensor, limit: float) -> Tensor:
        return F.leaky_relu(x, LRELU_SLOPE).clamp_(-limit, limit)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.limit = inputs[1]
        ctx.save_for_backward(output)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (y,) = ctx.saved_tensors
        within = torch.ops.aten.hardtanh_backward(gradients[0], y, -ctx.limit, ctx.limit)
        return torch.ops.aten.leaky_relu_backward(within, y, LRELU_SLOPE, True), None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], x: Tensor, limit: float) -> tuple[Tensor, int]:
        return _ClippedLeakyReLU.apply(x, limit), in_dims[0]


def scales_weights(x: Tensor, w: Tensor, weight: Tensor) -> bool:
    """Whether features x `[N, in, H, W]` are drawn under w `[N, w_dim]` with scaled weights, or scaled themselves.

    One image is drawn with scaled weights. Where w needs a gradient then, it comes from features (`_TimesOnes`), and
    none of the weights is computed for it. That gives the weights no gradient, and no second derivative. So where both
    need gradients, or transforms of functions derive, features are scaled.
    """
    if has_torch_function((x, w, weight)):  # as torch's own functions: a mode can decide otherwise (`bases`)
        return bool(handle_torch_function(scales_weights, (x, w, weight), x, w, weight))
    if not w.requires_grad:
        return len(x) == 1
    plain = own_functions() and not torch._C._are_functorch_transforms_active()
    return len(x) == 1 and plain and not weight.requires_grad


def nonzero(styles: Tensor) -> Tensor:
    """Styles, those near zero moved a little, so that they can be divided by."""
    small = styles.detach().abs() < SMALLEST_STYLE
    return styles.add(small.to(styles.dtype), alpha=2 * SMALLEST_STYLE)


def ones_of(scales: Tensor) -> Tensor:
    """What scales are multiplied by, if they are to change: ones, with their gradient."""
    return scales / scales.detach()


class _TimesOnes(Function):
    """Features x `[1, C, H, W]` by ones `[1, C]`: nothing is multiplied, but the ones have their gradient."""

    @staticmethod
    def forward(x: Tensor, ones: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        if torch.is_grad_enabled():
            raise RuntimeError("second derivatives of one image: give the generator's weights gradients as well")
        (x,) = ctx.saved_tensors
        if x.dtype == torch.float16:
            x = x.clamp(*FINITE[x.dtype])  # or an infinite feature, which is clipped later, times its gradient of zero
        return gradients[0], (gradients[0] * x).sum(dim=(2, 3))


def entered(half: HalfPass | None, *tensors: Tensor) -> tuple[Tensor, ...]:
    """In half precision, where that is what a layer works in."""
    return tensors if half is None else tuple(map(half.enter, tensors))


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
        styles, one = self.affine(w), scales_weights(x, w, weight)
        if one and w.requires_grad:
            styles = nonzero(styles)
        energy = weight.square().sum(dim=(2, 3))  # [out, in]
        # A leaky ReLU times a gain is the leaky ReLU of what is so much larger.
        larger = gain * LRELU_GAIN if self.activation == "lrelu" else gain
        demodulation = (styles.square() @ energy.T + DEMODULATION_EPS).rsqrt() * larger
        bias = self.bias * larger
        noise = None if noise is None else noise * (self.noise_strength * larger)
        if one:
            # Those of an output have length `larger` in all, so that half precision holds any sum of clipped features.
            scaled = weight * (demodulation[0, :, None] * styles[0])[:, :, None, None]
            if w.requires_grad:
                # By what has been scaled, w has its gradient from features, and needs none of the weights.
                scaled, bias, of_input, of_output = entered(
                    half, scaled.detach(), bias, ones_of(styles), ones_of(demodulation)
                )
                x = self._convolved(_TimesOnes.apply(x, of_input), scaled)
                x = _TimesOnes.apply(x, of_output) + bias[:, None, None]
            else:
                x = self._convolved(x, *entered(half, scaled, bias))
        else:
            if half is not None:
                styles, weight, demodulation = balanced(styles, weight, demodulation)
            styles, weight, demodulation, bias = entered(half, styles, weight, demodulation, bias)
            x = self._convolved(x * styles[:, :, None, None], weight)
            x = (x * demodulation[:, :, None, None]).add_(bias[:, None, None])
        # In place: nothing needs what was there before, and maps are large.
        if noise is not None:
            x.add_(*entered(half, noise))
        limit = limit_of(self.conv_clamp, half)
        limit = None if limit is None else limit * gain
        return leaky_relu(x, limit) if self.activation == "lrelu" else clipped(x, limit)

    def _convolved(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """At this layer's resolution."""
        if self.up != 2:
            return convolution(x, weight, bias, self.padding)
        # Stride-2 transposed convolution, then the filter; together they keep the image where it was.
        x = F.conv_transpose2d(x, weight.transpose(0, 1), stride=2)
        taps = self.resample_filter.shape[0]
        total = x.shape[2] + taps - 1 - self.resolution
        x = fir(x, self.resample_filter, (taps - 1 - total // 2, taps - 1 - (total - total // 2)), gain=4)
        return x if bias is None else x.add_(bias[:, None, None])


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
        styles, one = self.affine(w), scales_weights(x, w, weight)
        styles = (nonzero(styles) if one and w.requires_grad else styles) * self.weight_gain
        if one:
            weight = weight * styles[0, :, None, None]
            weight, bias = entered(half, weight.detach() if w.requires_grad else weight, self.bias)
            x = _TimesOnes.apply(x, *entered(half, ones_of(styles))) if w.requires_grad else x
        else:
            styles, weight, bias = entered(half, styles, weight, self.bias)
            x = x * styles[:, :, None, None]
        x = convolution(x, weight, bias, self.padding)
        x = clipped(x, limit_of(self.conv_clamp, half))
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
