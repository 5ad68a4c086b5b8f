"""The tensors of a generator in their weighted domains (see `layered`), quantised together with one step.

Each gets the numbers that `layered.Decomposed` has for it alone. But what works element by element is done for all of
them at once, and a tensor with components costs two operators: one of its factors by their sizes, and the product.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from pti_core.deltas.flat import Flat, moved_together
from pti_core.deltas.layered import Layers, Weights, leading_components, left_over, matrix_shape, most_components, worth
from pti_core.machine.parallel import on_idle_cores


class Together:
    """Tensors with weights and their leading components: computed once, quantised with many steps."""

    def __init__(self, delta: Flat, weights: Sequence[Weights]) -> None:
        """`delta` becomes what it is in the weighted domain."""
        device, self._weights, self._x = delta.values.device, weights, delta
        shapes = [matrix_shape(tuple(view.shape)) for view in delta.views]
        self._shapes = [(o, i * k) for o, i, k in shapes]
        self._scaling = Flat(self._shapes, device, fill=1.0)
        by_row = [torch.from_numpy(w.row_weights()) for w in weights]
        by_column = [torch.from_numpy(w.column_weights(k)) for w, (_, _, k) in zip(weights, shapes, strict=True)]
        sent = moved_together([*by_row, *by_column], device)
        for scaling, rows, columns in zip(self._scaling.views, sent[: len(shapes)], sent[len(shapes) :], strict=True):
            torch.mul(rows[:, None], columns, out=scaling)
        self._x.values.mul_(self._scaling.values)
        self._find_components(device)

    def _find_components(self, device: torch.device) -> None:
        def components(i: int) -> tuple[Tensor, Tensor, Tensor]:
            x = self._x.views[i].view(self._shapes[i])
            return leading_components(x, most_components(self._shapes[i]))

        some = [i for i, shape in enumerate(self._shapes) if most_components(shape)]
        found = dict(zip(some, on_idle_cores(components, some, device), strict=True))
        found = {i: parts for i, parts in found.items() if len(parts[1])}
        self._places = list(found)  # the tensors that have components
        factors = [(part, s) for u, s, v in found.values() for part in (u, v)]
        self._factors, self._rounded = (Flat([tuple(part.shape) for part, _ in factors], device) for _ in range(2))
        for view, (part, s) in zip(self._factors.views, factors, strict=True):
            torch.mul(part, s, out=view)
        self._counts = [len(s) for _, s, _ in found.values()]
        self._sizes = torch.cat([s for _, s, _ in found.values()] or [torch.zeros(0, device=device)])
        self._known = self._sizes.cpu().split(self._counts) if found else ()  # for ranks, which so ask no GPU

    def quantise(self, step: float, decoded: Flat) -> None:
        """`decoded` becomes the delta that is stored at a step."""
        for _ in self._left_over(step, decoded):
            pass

    def layers(self, step: float, decoded: Flat) -> list[Layers]:
        """What is stored of each tensor at a step, on the CPU; `decoded` becomes the delta."""
        left = torch.cat(list(self._left_over(step, decoded))).cpu()  # a transfer for all
        factors = self._rounded.views_of(self._rounded.values.cpu())
        rests = [rest.view(shape) for rest, shape in zip(decoded.views_of(left), self._shapes, strict=True)]
        parts = [(rest.reshape(-1)[:0], rest[:, :0], rest.T[:, :0]) for rest in rests]
        for n, (i, rank) in enumerate(zip(self._places, self._ranks(step), strict=True)):
            u, v = factors[2 * n : 2 * n + 2]
            parts[i] = (self._known[n][:rank], u[:, :rank], v[:, :rank])
        found = zip(self._weights, parts, rests, strict=True)
        return [Layers(step, weights, *part, rest) for weights, part, rest in found]

    def _ranks(self, step: float) -> list[int]:
        """How many components are worth storing, of each tensor that has some."""
        return [worth(s.numpy(), step, self._shapes[i]) for i, s in zip(self._places, self._known, strict=True)]

    def _left_over(self, step: float, decoded: Flat) -> Iterator[Tensor]:
        """What is left beside the components, in steps, block after block, while `decoded` becomes the delta."""
        decoded.values.zero_()
        if self._places:
            torch.div(self._factors.values, step, out=self._rounded.values).round_()
            by_size = (step * step / self._sizes).split(self._counts)
            for n, (i, rank) in enumerate(zip(self._places, self._ranks(step), strict=True)):
                if rank:
                    u, v = (part[:, :rank] for part in self._rounded.views[2 * n : 2 * n + 2])
                    torch.mm(u * by_size[n][:rank], v.T, out=decoded.views[i].view(self._shapes[i]))
        for x, low, scaling in zip(self._x.blocks(), decoded.blocks(), self._scaling.blocks(), strict=True):
            left = left_over(x, low, step)
            low.div_(scaling)
            yield left
