"""Matrix products and small convolutions on one thread of a CPU, by oneDNN.

torch gives them to MKL there, which on processors that are not Intel's makes no use of AVX-512: 100 GFLOP/s where
oneDNN does 235 (one core of an AMD EPYC with AVX-512; with AVX2 alone 105 and 122). With more threads, or larger maps
and kernels, torch itself takes oneDNN for convolutions. Sums come in another order, and nothing else changes: where
anything but plain float32 is asked for (a GPU, half precision, `torch.func`, compiling, …) it is torch's own.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function, forward_ad
from torch.nn import functional as F
from torch.overrides import handle_torch_function, has_torch_function

_HAS_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
_SMALL = 20480  # numbers in a map: up to here, and with kernels up to 3x3, torch convolves one image without oneDNN


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """a `[m, k]` @ b `[k, n]`."""
    traced = torch.is_grad_enabled() and (a.requires_grad or b.requires_grad)
    return _product(a, b) if not traced and _by_onednn(a, b) else a @ b


def convolution(x: Tensor, weight: Tensor, bias: Tensor | None = None, padding: int = 0) -> Tensor:
    """`F.conv2d` of x `[N, in, H, W]` with weight `[out, in, k, k]` and bias `[out]`, at stride 1."""
    tensors = (x, weight) if bias is None else (x, weight, bias)
    if has_torch_function(tensors):  # as torch's own functions: a mode sees this one (`bases`)
        return handle_torch_function(convolution, tensors, x, weight, bias, padding)
    if _by_onednn(*tensors) and _suits(x, weight, bias, padding):
        return _Convolution.apply(x, weight, bias, padding)
    return F.conv2d(x, weight, bias, padding=padding)


class _Convolution(Function):
    """Of one image, as a product of the weights with its columns (those of a 1x1 kernel are its pixels)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, padding: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.padding = padding
        y = _product(weight.flatten(1), _columns(x, weight.shape[2], padding))
        if bias is not None:
            y += bias[:, None]
        h, w = (size + 2 * padding - weight.shape[2] + 1 for size in x.shape[2:])
        return y.resize_(1, len(weight), h, w)  # in place: what returns a view may not be changed by its caller

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        kernel, g = weight.shape[2], gradient[0].flatten(1)
        of_x = of_weight = of_bias = None
        if ctx.needs_input_grad[0]:
            of_x = matmul(weight.flatten(1).T, g)
            of_x = of_x.view_as(x) if kernel == 1 else F.fold(of_x[None], x.shape[2:], kernel, padding=ctx.padding)
        if ctx.needs_input_grad[1]:
            of_weight = matmul(g, _columns(x, kernel, ctx.padding).T).view_as(weight)
        if ctx.needs_input_grad[2]:
            of_bias = g.sum(dim=1)
        return of_x, of_weight, of_bias, None


def own_functions() -> bool:
    """Whether autograd functions of the project's own serve: not in a trace, nor for derivatives in forward mode."""
    return not torch.jit.is_tracing() and forward_ad._current_level < 0  # type: ignore[attr-defined]


def _columns(x: Tensor, kernel: int, padding: int) -> Tensor:
    """`[in * kernel * kernel, pixels]` of x `[1, in, H, W]`."""
    return x[0].flatten(1) if kernel == 1 else F.unfold(x, kernel, padding=padding)[0]


def _product(a: Tensor, b: Tensor) -> Tensor:
    """oneDNN's a @ b. (Its layer `linear`, which takes b.T; the operator that torch.compile calls for it.)"""
    found: Tensor = torch.ops.mkldnn._linear_pointwise(a, b.T, None, "none", [], "")
    return found


def _suits(x: Tensor, weight: Tensor, bias: Tensor | None, padding: int) -> bool:
    if x.ndim != 4 or weight.ndim != 4 or len(x) != 1 or not x.is_contiguous():
        return False
    (out, channels, k, width), (h, w) = weight.shape, x.shape[2:]
    fits = channels == x.shape[1] and k == width and k <= min(h, w) and (bias is None or bias.shape == (out,))
    return fits and (padding == 0 if k == 1 else k <= 3 and x.numel() <= _SMALL)


def _by_onednn(*tensors: Tensor) -> bool:
    if torch.compiler.is_compiling() or not own_functions():
        return False
    return (
        all(t.device.type == "cpu" and t.dtype == torch.float32 for t in tensors)
        and _HAS_ONEDNN
        and torch.get_num_threads() == 1
        and bool(torch.backends.mkldnn.enabled)
        and not torch.is_autocast_enabled("cpu")
        and not torch._C._are_functorch_transforms_active()
    )
