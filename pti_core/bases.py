"""Adam in the basis of what each layer sees: the eigenvectors of the second moment of its inputs.

Adam scales every coordinate by its own gradients, so its steps depend on the axes they are taken along. A layer's
inputs are strongly correlated: along the axes of single channels, every weight changes a little of what all images
share. Along the eigenvectors of E[x x^T], x being the input over samples w_z, what an image needs is in few
coordinates, and the rest stays. (One side of SOAP, Vyas et al. 2024, arXiv 2409.11321; the eigenbasis of K-FAC's
input factor, George et al. 2018, arXiv 1806.03884. There the moments are of the data in training.)

The eigenvalues say how much the rest of W sees of a change: E||dW x||^2 is the sum over the directions of eigenvalue
times squared length of dW along it (of 1x1 kernels; of larger ones as if neighbouring pixels had nothing to do with
each other). So the pull back to the old weights is strongest where inputs vary most.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from pti_core.generators.base import Generator
from pti_core.generators.stylegan2_layers import scales_weights
from pti_core.machine.device import exact_float32
from pti_core.machine.matmul import convolution, matmul
from pti_core.machine.parallel import in_parallel

SAMPLES = 32
"""Samples w_z at which a layer's inputs are looked at."""

_CONVOLUTIONS = (F.conv2d, F.conv_transpose2d, convolution)


class _Inputs(TorchFunctionMode):
    """The sum of x x^T over the pixels, for every convolution whose weight is a parameter of these, while in force."""

    def __init__(self, parameters: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.names = {p.data_ptr(): name for name, p in parameters.items()}
        self.moments: dict[str, Tensor] = {}

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is scales_weights:
            return False  # but features: the parameters themselves are what convolves then
        if func in _CONVOLUTIONS and (name := self.names.get(args[1].data_ptr())):
            x = args[0].transpose(0, 1).flatten(1)
            self.moments[name] = (x @ x.T).double()
        return func(*args, **(kwargs or {}))


@dataclass(frozen=True)
class Basis:
    """The directions that a layer's inputs vary along, and how much they do."""

    directions: Tensor  # [in, in], orthonormal, a column a direction
    moments: Tensor  # [in], mean square of the inputs along each, by the mean over all: 1 where all are alike

    @classmethod
    def of(cls, moment: Tensor) -> Basis:
        """The eigenvectors and eigenvalues of E[x x^T] `[in, in]`, up to a factor."""
        values, vectors = torch.linalg.eigh(moment)
        values = values.clamp_min(0)
        return cls(vectors.float(), (values / values.mean().clamp_min(torch.finfo(values.dtype).tiny)).float())


class Shares:
    """The share of the way back to its old values for each direction of parameters `[out, in, ...]` with a basis.

    `pull` where a direction's moment m is 1, else pull m / (1 - pull + pull m): the proximal step of mu/2 m d^2 with
    mu = pull / (1 - pull), where d is a move along the direction. So it is below 1 however large m is.
    """

    def __init__(self, ways: Sequence[Basis | None], parameters: Sequence[Tensor]) -> None:
        self.taps = [None if way is None else p.ndim - 2 for way, p in zip(ways, parameters, strict=True)]
        moments = [way.moments for way in ways if way is not None]
        self.sizes = [len(m) for m in moments]
        self.moments = torch.cat(moments) if moments else None

    def at(self, pull: float | Tensor) -> list[Tensor | None]:
        """For each parameter what its values are multiplied by, `[1, in, 1, ...]`; None where it has no basis.

        Of a stack `[B, out, in, ...]` for pulls `[B]`: `[B, 1, in, 1, ...]`.
        """
        if self.moments is None:
            return [None] * len(self.taps)
        pull = pull[:, None] if isinstance(pull, Tensor) else pull
        pulled = pull * self.moments  # all of them at once: each alone is a kernel that does next to nothing
        parts = iter((pulled / (1 - pull + pulled)).split(self.sizes, dim=-1))
        return [None if taps is None else _before_taps(next(parts), taps) for taps in self.taps]


@dataclass(frozen=True)
class Bases:
    """The bases that a generator's weights are tuned in."""

    of_w: Basis  # of what the maps from w to styles see
    of_layers: dict[str, Basis]  # of what each convolution sees that mixes channels, by its weight's name

    def of(self, name: str, parameter: Tensor) -> Basis | None:
        """The basis of a parameter's inputs; None where they have no axes to turn (biases, one channel at a time)."""
        return self.of_w if parameter.ndim == 2 else self.of_layers.get(name)

    def w_along(self, w: Tensor) -> Tensor:
        """w or ws `[..., w_dim]` in the coordinates that an `along_w` copy takes."""
        return w @ self.of_w.directions

    def pivots_along(self, ws: Tensor) -> Tensor:
        """`w_along` for what stays: in exact float32 on a GPU, where what is drawn for one step need not be."""
        with exact_float32(ws.device):
            return self.w_along(ws)

    @torch.no_grad()
    def along_w(self, generator: Generator) -> Generator:
        """A copy that draws for `w_along(ws)` what the generator draws for ws: its coordinates of W are `of_w`'s.

        So the gradients of its maps are along them too, for nothing.
        """
        new: Generator = copy.deepcopy(generator)
        with exact_float32(self.of_w.directions.device):
            for p in new.tunable().values():
                if p.ndim == 2:
                    p.copy_(self.w_along(p))
        return new

    def delta(self, turned: Mapping[str, Tensor], old: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What the weights of an `along_w` copy have moved by, in the generator's own coordinates."""
        moved = {name: (p - old[name]).detach() for name, p in turned.items()}
        back = self.of_w.directions.T
        with exact_float32(back.device):
            return {name: d @ back if d.ndim == 2 else d for name, d in moved.items()}


def input_bases(generator: Generator, w: Tensor) -> Bases:
    """The basis of every layer's input, over samples w `[N, w_dim]`.

    The maps from w see all of them, the convolutions the first `SAMPLES`. On a CPU each sample is a job of its own
    (`parallel`), so that the number of cores changes no bit; not to be called from within such a job.
    """
    net = generator.with_precision("fp32")
    mixing = {name: p for name, p in net.tunable().items() if p.ndim == 4 and p.shape[1] > 1}

    @torch.no_grad()
    def seen(one: Tensor, check: Callable[[], None]) -> dict[str, Tensor]:
        check()
        with _Inputs(mixing) as inputs:
            net.synthesis(one.view(1, 1, -1).expand(1, net.num_ws, -1))
        return inputs.moments

    @torch.no_grad()
    def basis(moment: Tensor | None, check: Callable[[], None]) -> Basis:
        check()
        return Basis.of((w.T @ w).double() if moment is None else moment)

    moments: dict[str, Tensor] = {}
    for found in in_parallel(seen, w[:SAMPLES], w.device):
        for name, moment in found.items():
            moments[name] = moments[name] + moment if name in moments else moment
    of_w, *of_layers = in_parallel(basis, [None, *moments.values()], w.device)
    return Bases(of_w, dict(zip(moments, of_layers, strict=True)))


def turned(values: Tensor, basis: Basis | None) -> Tensor:
    """`[out, in, ...]` along the basis' directions in place of the input channels; itself where there is none."""
    return values if basis is None else _along_inputs(values, basis.directions)


def turned_back(values: Tensor, basis: Basis | None) -> Tensor:
    """The inverse of `turned`."""
    return values if basis is None else _along_inputs(values, basis.directions.T)


def _along_inputs(values: Tensor, matrix: Tensor) -> Tensor:
    last = values.movedim(1, -1)
    # Contiguous, as the weights are: torch's fused Adam takes a gradient of another layout for one of the weights'.
    return matmul(last.flatten(0, -2), matrix).view(last.shape).movedim(-1, 1).contiguous()


def _before_taps(values: Tensor, taps: int) -> Tensor:
    return values.view(*values.shape[:-1], 1, -1, *[1] * taps)
