"""What the families of this package have in common beside their sub-modules."""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from typing import Any, Self

from torch import Tensor, nn

from pti_core.generators.base import Generator
from pti_core.generators.half import Precision, check_precision
from pti_core.generators.mapping import MappingNetwork


def with_weights(generator: Generator, weights: Sequence[Tensor]) -> Generator:
    """A copy that draws with other weights, of the shapes and in the order of `tunable()`; all else is shared."""
    shared: dict[int, Any] = {}
    for tensor in (*generator.parameters(), *generator.buffers()):  # type: ignore[attr-defined]
        shared[id(tensor)] = tensor
    for old, new in zip(generator.tunable().values(), weights, strict=True):
        shared[id(old)] = nn.Parameter(new, requires_grad=False)
    return copy.deepcopy(generator, shared)


class GeneratorNetwork(nn.Module):
    """A mapping and a synthesis whose `layers` each have a `resolution` and a `noise_const`."""

    kind: str
    mapping: MappingNetwork
    synthesis: Any

    def forward(self, z: Tensor, c: Tensor | None = None, truncation_psi: float = 1.0, **synthesis: Any) -> Tensor:
        """Images `[N, img_channels, H, W]` of z `[N, z_dim]` (and labels c `[N, c_dim]`)."""
        return self.synthesis(self.mapping(z, c, truncation_psi=truncation_psi), **synthesis)

    @property
    def noise_shapes(self) -> list[tuple[int, int]]:
        """(H, W) of every noise map."""
        return [(layer.resolution, layer.resolution) for layer in self.synthesis.layers]

    def noise_const(self) -> list[Tensor]:
        """The generator's own maps, about unit variance, `[H, W]` each."""
        return [layer.noise_const for layer in self.synthesis.layers]

    def tunable(self) -> dict[str, nn.Parameter]:
        """All parameters of the synthesis."""
        return {f"synthesis.{name}": p for name, p in self.synthesis.named_parameters()}

    def tunable_resolutions(self) -> dict[str, int]:
        """By the block that a parameter is in."""
        blocks = {name: re.match(r"synthesis\.b(\d+)\.", name) for name in self.tunable()}
        return {name: int(block[1]) if block else self.resolution_outside(name) for name, block in blocks.items()}

    def resolution_outside(self, name: str) -> int:
        """The same for a parameter outside the blocks, of which a family may have some."""
        raise NotImplementedError(f"{type(self).__name__}: {name} is in no block")

    def with_precision(self, precision: Precision) -> Self:
        """The same generator in another precision. Both share all weights; a copy of the result keeps its precision.

        Raises ValueError for another word.
        """
        check_precision(precision)
        shared, synthesis = copy.copy(self), copy.copy(self.synthesis)
        synthesis.precision = precision
        shared.__dict__["_modules"] = {**self._modules, "synthesis": synthesis}  # not the table that both share
        return shared
