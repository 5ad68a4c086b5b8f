"""StyleGAN2's low-pass filter, and upsampling with it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional as F

from pti_core.machine.matmul import own_functions

TAPS = (1, 3, 3, 1)  # of the usual filter


def fir_kernel(taps: Sequence[float]) -> Tensor:
    """The separable low-pass filter as a `[k, k]` kernel that sums to one."""
    kernel = torch.tensor(list(taps), dtype=torch.float32)
    kernel = torch.outer(kernel, kernel)
    return kernel / kernel.sum()


def fir(x: Tensor, kernel: Tensor, padding: tuple[int, int], gain: float = 1.0) -> Tensor:
    """Filter every channel of x `[N, C, H, W]`; padding (before, after) on both axes."""
    weight = (kernel * gain).to(x.dtype)[None, None].expand(x.shape[1], 1, -1, -1)
    if padding[0] != padding[1]:
        x, padding = F.pad(x, [*padding, *padding]), (0, 0)
    if not own_functions():
        return F.conv2d(x, weight, padding=padding[0], groups=len(weight))
    filtered: Tensor = _Fir.apply(x, weight, padding[0])
    return filtered


class _Fir(Function):
    """A convolution of each channel with a constant: torch's own would keep the input for the kernel's gradient."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, padding: int) -> Tensor:
        return F.conv2d(x, weight, padding=padding, groups=len(weight))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, weight, ctx.padding = inputs
        ctx.save_for_backward(weight)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (weight,) = ctx.saved_tensors
        # A convolution too, which on a CPU takes a fraction of what torch's gradient takes.
        rest = weight.shape[-1] - 1 - ctx.padding
        return F.conv2d(gradients[0], weight.flip(2, 3), padding=rest, groups=len(weight)), None, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], x: Tensor, weight: Tensor, padding: int) -> tuple[Tensor, int]:
        x = x.movedim(in_dims[0], 0)
        return _Fir.apply(x.flatten(0, 1), weight, padding).unflatten(0, x.shape[:2]), 0


def upsample2d(x: Tensor, kernel: Tensor) -> Tensor:
    """Twice the resolution: zeros between the pixels, then the filter with gain 4."""
    channels, taps = x.shape[1], kernel.shape[0]
    weight = (kernel * 4).to(x.dtype)[None, None].expand(channels, 1, -1, -1)
    # A transposed convolution inserts the zeros; it spreads taps - 2 pixels too far in all, more of them at the end.
    full = F.conv_transpose2d(x, weight.flip(2, 3), stride=2, groups=channels)
    begin = (taps - 1) // 2
    return full[:, :, begin : begin + 2 * x.shape[2], begin : begin + 2 * x.shape[3]]
