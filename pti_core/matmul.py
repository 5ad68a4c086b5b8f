"""Matrix products and 1x1 convolutions on one thread of a CPU, by oneDNN.

torch gives both to MKL there, which on processors that are not Intel's makes no use of AVX-512: 100 GFLOP/s where
oneDNN does 235 (one core of an AMD EPYC with AVX-512; with AVX2 alone 105 and 122). With more threads torch itself
takes oneDNN for convolutions. Sums come in another order, nothing else changes. Everywhere else (GPUs, half precision,
`torch.func`) these are torch's own.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.overrides import handle_torch_function, has_torch_function

_HAS_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """a `[m, k]` @ b `[k, n]`."""
    traced = torch.is_grad_enabled() and (a.requires_grad or b.requires_grad)
    return _product(a, b) if not traced and _by_onednn(a, b) else a @ b


def pointwise(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """The 1x1 convolution `F.conv2d(x, weight, bias)`: x `[N, in, H, W]`, weight `[out, in, 1, 1]`, bias `[out]`."""
    if has_torch_function((x, weight)):  # as torch's own functions: a mode sees this one (`bases`)
        return handle_torch_function(pointwise, (x, weight), x, weight, bias)
    if len(x) == 1 and _by_onednn(x, weight) and x.is_contiguous():
        return _Pointwise.apply(x, weight, bias)
    return F.conv2d(x, weight, bias)


class _Pointwise(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        y = _product(weight.flatten(1), x[0].flatten(1))
        if bias is not None:
            y += bias[:, None]
        return y.resize_(1, len(weight), *x.shape[2:])  # in place: what returns a view may not be changed by its caller

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        g, of_x, of_weight, of_bias = gradient[0].flatten(1), None, None, None
        if ctx.needs_input_grad[0]:
            of_x = _product(weight.flatten(1).T, g).view_as(x)
        if ctx.needs_input_grad[1]:
            of_weight = _product(g, x[0].flatten(1).T).view_as(weight)
        if ctx.needs_input_grad[2]:
            of_bias = g.sum(dim=1)
        return of_x, of_weight, of_bias


def _product(a: Tensor, b: Tensor) -> Tensor:
    """oneDNN's a @ b. (Its layer `linear`, which takes b.T; the operator that torch.compile calls for it.)"""
    found: Tensor = torch.ops.mkldnn._linear_pointwise(a, b.T, None, "none", [], "")
    return found


def _by_onednn(a: Tensor, b: Tensor) -> bool:
    return (
        a.device.type == "cpu"
        and a.dtype == b.dtype == torch.float32
        and torch.get_num_threads() == 1
        and not torch._C._are_functorch_transforms_active()
        and bool(torch.backends.mkldnn.enabled)
        and _HAS_ONEDNN
    )
