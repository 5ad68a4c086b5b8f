"""Many tensors as one: an operator for all of them is one operator, and a GPU is sent each by itself."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

_BEGIN = 16  # values: 64 bytes, where a tensor of its own begins
_BLOCK = 1 << 20  # values that a processor's caches hold, several times


class Flat:
    """Tensors of some shapes in one tensor `values` `[n]`, float32, and the view of each.

    Each begins where a tensor of its own would, since a processor's kernels may sum otherwise elsewhere. What is
    between them has the value `fill` as well.
    """

    def __init__(self, shapes: Sequence[tuple[int, ...]], device: torch.device, fill: float = 0.0) -> None:
        self._shapes = list(shapes)
        self._rooms = [math.ceil(math.prod(shape) / _BEGIN) * _BEGIN for shape in shapes]
        self.values = torch.full((sum(self._rooms),), fill, device=device)
        self.views = self.views_of(self.values)

    def views_of(self, values: Tensor) -> list[Tensor]:
        """The views of other values `[n]` that lie in the same way."""
        parts = values.split(self._rooms) if self._rooms else ()
        return [part[: math.prod(shape)].view(shape) for part, shape in zip(parts, self._shapes, strict=True)]

    def blocks(self) -> tuple[Tensor, ...]:
        """The values in parts for work element by element: small ones on a CPU, elsewhere one of them all."""
        return self.values.split(_BLOCK) if self.values.device.type == "cpu" else (self.values,)


def moved_together(tensors: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """Tensors of one type on a device: as they are where they lie there, else in one transfer for all of them."""
    if all(tensor.device == device for tensor in tensors):
        return list(tensors)
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors]).to(device)
    parts = flat.split([tensor.numel() for tensor in tensors])
    return [part.view(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]
