"""Half precision for the top resolutions of a synthesis network: what crosses their border, and how gradients do.

The weights stay float32; each pass casts what it uses. Gradients of a mean over a million pixels are smaller than
fp16 can hold, so within the half-precision part they are multiplied by a power of two, which every pass finds from
the gradient that reaches its image, and divided by it again on the way out: whoever calls sees true gradients.
"""

from __future__ import annotations

import math
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.autograd import Function

Precision = Literal["fp32", "half", "fp16", "bf16"]
DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}
AS_GOOD_IN_HALF = ("mobilestylegan",)  # families whose inversions have been compared in both precisions (docs/speed.md)
HALF_RESOLUTIONS = 4  # of a generator whose file names none: what NVIDIA's training uses
HALF_CLAMP = 512.0  # of a layer without `conv_clamp`; fp16 holds it times sqrt(2 * 512 * 9), the worst sum of a layer
FINITE = {dtype: (torch.finfo(dtype).min, torch.finfo(dtype).max) for dtype in DTYPES.values()}
GRADIENT_SUM = 2.0**7  # of |gradient| over an image: times 256, an activation at its limit everywhere, fp16 holds it


def check_precision(precision: str) -> None:
    """Raise ValueError for anything but a `Precision`."""
    if precision not in get_args(Precision):
        raise ValueError(f"precision {precision!r}: one of {', '.join(get_args(Precision))} expected")


def multiplies_bf16(device: torch.device) -> bool:
    """Whether it is a CPU with instructions for products of bf16 (AVX-512 BF16, which AMX comes with).

    Without them bf16 is slower than float32 there.
    """
    known = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return device.type == "cpu" and torch.backends.mkldnn.is_available() and known is not None and known()


def precision_for(wanted: Literal["auto", "fp32", "half", "bf16"], kind: str, device: torch.device) -> Precision:
    """What a generator of a family draws in: `auto` is half precision where it is faster and as good, else float32."""
    if wanted != "auto":
        return wanted
    return "half" if kind in AS_GOOD_IN_HALF and multiplies_bf16(device) else "fp32"


def half_dtype(precision: Precision, device: torch.device) -> torch.dtype | None:
    """What the top runs in; None for float32. `half` is fp16, but on a CPU bf16: fp16 convolutions crawl there."""
    if precision == "fp32":
        return None
    return DTYPES["bf16" if device.type == "cpu" else "fp16"] if precision == "half" else DTYPES[precision]


class HalfPass:
    """One drawing pass in half precision: its casts, which share the scale of its gradients."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.scale: Tensor | float = 1.0  # set by every backward pass before anything else of it runs

    def enter(self, x: Tensor) -> Tensor:
        """A float32 tensor in half precision; its gradient comes back in float32 and true."""
        return _Enter.apply(x, self, False)

    def leave(self, x: Tensor) -> Tensor:
        """A half-precision tensor in float32."""
        return _Leave.apply(x, self, False)

    def watch(self, images: Tensor) -> Tensor:
        """The pass's images `[N, C, H, W]`, unchanged; their gradient decides the scale."""
        return _Watch.apply(images, self, False)


def balanced(styles: Tensor, weight: Tensor, demodulation: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The same modulated convolution with no sum that overflows: styles at most 1, weights at most 1/sqrt(fan in).

    styles `[N, in]`, weight `[out, in, k, k]`, demodulation `[N, out]`, which takes back what was divided away. The
    factors cancel, so they are constants for the gradient.
    """
    largest_style = styles.detach().abs().amax(dim=1, keepdim=True).clamp_min(1e-8)
    largest_weight = weight.detach().abs().amax(dim=(1, 2, 3)).clamp_min(1e-8) * math.sqrt(weight[0].numel())
    return (
        styles / largest_style,
        weight / largest_weight[:, None, None, None],
        demodulation * largest_style * largest_weight,
    )


def _scale_for(scale: Tensor | float, gradient: Tensor, stacked: bool) -> Tensor | float:
    """The scale of a pass, or those `[B]` of a stack's places, in a shape that a gradient is multiplied by."""
    if not isinstance(scale, Tensor) or scale.ndim == 0:
        return scale
    if not stacked:
        raise RuntimeError("a gradient of what all places of a stack share: each place has a scale of its own")
    return scale.view(-1, *[1] * (gradient.ndim - 1))


class _Crossing(Function):
    """A tensor and its pass in, a tensor out; under `vmap` the places of a stack come first."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, ctx.half, ctx.stacked = inputs

    @classmethod
    def over_places(cls, in_dims: tuple[Any, ...], x: Tensor, half: HalfPass, stacked: bool) -> tuple[Tensor, int]:
        if stacked:
            raise RuntimeError("half precision in a stack of stacks")
        return cls.apply(x.movedim(in_dims[0], 0), half, True), 0


class _Enter(_Crossing):
    @staticmethod
    def forward(x: Tensor, half: HalfPass, stacked: bool) -> Tensor:
        return x.to(half.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        # A sum that overflows all the same is very large, not infinite; NaN stays NaN.
        gradient = gradients[0].clamp(*FINITE[ctx.half.dtype]).to(torch.float32)
        return gradient / _scale_for(ctx.half.scale, gradient, ctx.stacked), None, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *inputs: Any) -> tuple[Tensor, int]:
        return _Enter.over_places(in_dims, *inputs)


class _Leave(_Crossing):
    @staticmethod
    def forward(x: Tensor, half: HalfPass, stacked: bool) -> Tensor:
        return x.to(torch.float32)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        scaled = gradients[0] * _scale_for(ctx.half.scale, gradients[0], ctx.stacked)
        return scaled.to(ctx.half.dtype), None, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *inputs: Any) -> tuple[Tensor, int]:
        return _Leave.over_places(in_dims, *inputs)


class _Watch(_Crossing):
    @staticmethod
    def forward(images: Tensor, half: HalfPass, stacked: bool) -> Tensor:
        return images.view_as(images)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        sums = gradients[0].abs().sum(dim=(-3, -2, -1))
        largest = sums.where(sums.isfinite(), 0)  # one that is lost takes no other image with it
        # The weights of an ordinary pass add up what its images give, so all have one scale; a stack's are its own.
        largest = largest.amax(dim=1) if ctx.stacked else largest.amax()
        # A power of two, so that scaling rounds nothing; no synchronisation with the device.
        ctx.half.scale = torch.where(largest > 0, GRADIENT_SUM / largest, 1.0).log2().floor().clamp(-100, 100).exp2()
        return gradients[0], None, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *inputs: Any) -> tuple[Tensor, int]:
        return _Watch.over_places(in_dims, *inputs)
