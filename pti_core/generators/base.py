"""What the method needs of a generator, whatever its architecture, resolution or subject."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, Self, runtime_checkable

import torch
from torch import Tensor, nn

from pti_core.generators.half import Precision

NoiseMode = Literal["const", "random", "none"]


class MappingFn(Protocol):
    """`f(z)` of the papers, with truncation; also carries the running mean of W."""

    w_avg: Tensor  # [w_dim]

    def __call__(
        self,
        z: Tensor,
        c: Tensor | None = None,
        truncation_psi: float = 1.0,
        truncation_cutoff: int | None = None,
    ) -> Tensor:
        """Map z `[N, z_dim]` (and labels c `[N, c_dim]`) to ws `[N, num_ws, w_dim]`."""
        ...


class SynthesisFn(Protocol):
    """`g(w, n; theta)`: ws `[N, num_ws, w_dim]` to images `[N, img_channels, H, W]` in about [-1, 1]."""

    def __call__(
        self,
        ws: Tensor,
        noise_mode: NoiseMode = "const",
        noise: Sequence[Tensor] | None = None,
    ) -> Tensor:
        """Draw images. `noise` (one `[N or 1, 1, H, W]` map a layer, unit variance) overrides `noise_mode`."""
        ...


@dataclass(frozen=True)
class Style:
    """What one slot of ws modulates."""

    resolution: int  # pixels of the features (of the image for a layer that only draws it)
    affine: Tensor  # [channels, w_dim], the weight of the map from w to the channels' scales


@runtime_checkable
class Generator(Protocol):
    """A style-based generator: a mapping, a synthesis with noise maps, and what of it is tuned.

    Every implementation is an `nn.Module` with `mapping` and `synthesis` as sub-modules. Nothing in the method
    assumes a number of layers, a resolution or a subject: it reads them from here.
    """

    kind: str  # family name in files and tables, e.g. "stylegan2"
    z_dim: int
    w_dim: int
    c_dim: int  # 0: unconditional
    num_ws: int  # style slots, i.e. the length of W+
    img_resolution: int
    img_channels: int

    @property
    def mapping(self) -> MappingFn:
        """The mapping network."""
        ...

    @property
    def synthesis(self) -> SynthesisFn:
        """The synthesis network."""
        ...

    @property
    def config(self) -> Mapping[str, Any]:
        """The constructor's arguments (JSON types only): `type(self)(**config)` has the same state dict."""
        ...

    @property
    def noise_shapes(self) -> list[tuple[int, int]]:
        """(H, W) of every noise map, in the order that `synthesis(noise=...)` takes."""
        ...

    def noise_const(self) -> list[Tensor]:
        """The generator's own fixed noise maps `[H, W]`, about unit variance, in the same order."""
        ...

    def styles(self) -> list[Style]:
        """What each of the `num_ws` slots modulates, coarse to fine."""
        ...

    def tunable(self) -> dict[str, nn.Parameter]:
        """The parameters that pivotal tuning changes, by their names in `state_dict()`; the mapping never is."""
        ...

    def tunable_resolutions(self) -> dict[str, int]:
        """For each name of `tunable()`, the pixels of the features that the parameter works on."""
        ...

    def with_precision(self, precision: Precision) -> Self:
        """The same generator, its weights shared, drawing in another precision. ValueError where it has none such."""
        ...


def truncate(ws: Tensor, w_avg: Tensor, psi: float, cutoff: int | None = None) -> Tensor:
    """The truncation trick: move ws `[N, num_ws, w_dim]` towards w_avg, `psi=1` being no change.

    `cutoff` limits it to the first slots. (StyleGAN, Karras et al. 2019, appendix B.)
    """
    if psi == 1.0:
        return ws
    if cutoff is None:
        return w_avg.lerp(ws, psi)
    return torch.cat([w_avg.lerp(ws[:, :cutoff], psi), ws[:, cutoff:]], dim=1)
