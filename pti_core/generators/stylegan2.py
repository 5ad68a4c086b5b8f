"""StyleGAN2 with the parameter names of NVIDIA's stylegan2-ada-pytorch, so that state dicts fit both ways.

Every synthesis architecture (`skip`, `orig`, `resnet`), any power-of-two resolution, any size of z and w, conditional
or not. Layers that a checkpoint marks as half precision run in float32.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pti_core.generators.base import NoiseMode
from pti_core.generators.mapping import MappingNetwork
from pti_core.generators.network import GeneratorNetwork
from pti_core.generators.noise import noise_maps
from pti_core.generators.stylegan2_layers import SkipConv, SynthesisLayer, ToRGBLayer, fir_kernel, upsample2d

Architecture = Literal["skip", "orig", "resnet"]


class SynthesisBlock(nn.Module):
    """One resolution: the constant (at 4x4) or an upsampling layer, a layer, and what the architecture adds."""

    resample_filter: Tensor

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        w_dim: int,
        resolution: int,
        img_channels: int,
        is_last: bool,
        architecture: Architecture,
        **layer: Any,
    ) -> None:
        super().__init__()
        self.in_channels, self.architecture, self.resolution = in_channels, architecture, resolution
        taps = layer.get("resample_filter", (1, 3, 3, 1))
        self.register_buffer("resample_filter", fir_kernel(taps))
        self.num_conv = self.num_torgb = 0
        if in_channels == 0:
            self.const = nn.Parameter(torch.randn(out_channels, resolution, resolution))
        else:
            self.conv0 = SynthesisLayer(in_channels, out_channels, w_dim, resolution, up=2, **layer)
            self.num_conv += 1
        self.conv1 = SynthesisLayer(out_channels, out_channels, w_dim, resolution, **layer)
        self.num_conv += 1
        if is_last or architecture == "skip":
            self.torgb = ToRGBLayer(out_channels, img_channels, w_dim, conv_clamp=layer.get("conv_clamp"))
            self.num_torgb += 1
        if in_channels != 0 and architecture == "resnet":
            self.skip = SkipConv(in_channels, out_channels, taps)

    @property
    def layers(self) -> list[SynthesisLayer]:
        """The layers that take noise, in order."""
        return [self.conv1] if self.in_channels == 0 else [self.conv0, self.conv1]

    def forward(
        self, x: Tensor | None, img: Tensor | None, ws: Tensor, noise: Sequence[Tensor | None]
    ) -> tuple[Tensor, Tensor | None]:
        """Take features, image so far, ws `[N, num_conv + num_torgb, w_dim]`, noise; give both at this resolution."""
        if self.in_channels == 0 or x is None:
            x = self.const[None].expand(len(ws), -1, -1, -1)
            x = self.conv1(x, ws[:, 0], noise[0])
        elif self.architecture == "resnet":
            y = self.skip(x, gain=math.sqrt(0.5))
            x = self.conv0(x, ws[:, 0], noise[0])
            x = y + self.conv1(x, ws[:, 1], noise[1], gain=math.sqrt(0.5))
        else:
            x = self.conv1(self.conv0(x, ws[:, 0], noise[0]), ws[:, 1], noise[1])
        if img is not None:
            img = upsample2d(img, self.resample_filter)
        if self.num_torgb:
            rgb = self.torgb(x, ws[:, self.num_conv])
            img = rgb if img is None else img + rgb
        return x, img


class SynthesisNetwork(nn.Module):
    """g(w, n): blocks from 4x4 to the image's resolution."""

    def __init__(
        self,
        w_dim: int,
        img_resolution: int,
        img_channels: int,
        channel_base: int = 32768,
        channel_max: int = 512,
        num_fp16_res: int = 0,
        architecture: Architecture = "skip",
        **layer: Any,
    ) -> None:
        super().__init__()
        if img_resolution < 8 or img_resolution & (img_resolution - 1):
            raise ValueError(f"img_resolution {img_resolution}: a power of two from 8 expected")
        if architecture not in ("skip", "orig", "resnet"):
            raise ValueError(f"architecture {architecture!r}: 'skip', 'orig' or 'resnet' expected")
        self.w_dim, self.img_resolution = w_dim, img_resolution
        self.block_resolutions = [2**i for i in range(2, int(math.log2(img_resolution)) + 1)]
        channels = {r: min(channel_base // r, channel_max) for r in self.block_resolutions}
        self.num_ws = 0
        for r in self.block_resolutions:
            last = r == img_resolution
            c_in = channels[r // 2] if r > 4 else 0
            block = SynthesisBlock(c_in, channels[r], w_dim, r, img_channels, last, architecture, **layer)
            # A block's image layer shares the slot of the next block's first layer; only the last has one of its own.
            self.num_ws += block.num_conv + (block.num_torgb if last else 0)
            setattr(self, f"b{r}", block)

    @property
    def blocks(self) -> list[SynthesisBlock]:
        """Coarse to fine."""
        return [getattr(self, f"b{r}") for r in self.block_resolutions]

    @property
    def layers(self) -> list[SynthesisLayer]:
        """All layers that take noise, in the order of their maps."""
        return [layer for block in self.blocks for layer in block.layers if layer.use_noise]

    def forward(self, ws: Tensor, noise_mode: NoiseMode = "const", noise: Sequence[Tensor] | None = None) -> Tensor:
        """Draw `[N, img_channels, R, R]`, about [-1, 1], from ws `[N, num_ws, w_dim]`.

        `noise`: one `[N or 1, 1, H, W]` map a layer, unit variance; overrides `noise_mode`.
        Raises ValueError where ws, the mode or the maps do not fit.
        """
        if ws.ndim != 3 or ws.shape[1:] != (self.num_ws, self.w_dim):
            raise ValueError(f"ws of shape {list(ws.shape)}: [N, {self.num_ws}, {self.w_dim}] expected")
        maps = iter(noise_maps(self.layers, len(ws), noise_mode, noise))
        x = img = None
        slot = 0
        for block in self.blocks:
            block_ws = ws[:, slot : slot + block.num_conv + block.num_torgb]
            slot += block.num_conv
            block_noise = [next(maps) if layer.use_noise else None for layer in block.layers]
            x, img = block(x, img, block_ws, block_noise)
        assert img is not None
        return img


class StyleGAN2(GeneratorNetwork):
    """The whole generator; fulfils `pti_core.generators.base.Generator`."""

    kind = "stylegan2"

    def __init__(
        self,
        z_dim: int,
        c_dim: int,
        w_dim: int,
        img_resolution: int,
        img_channels: int = 3,
        mapping_kwargs: Mapping[str, Any] | None = None,
        synthesis_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        """`mapping_kwargs` and `synthesis_kwargs` as in NVIDIA's constructor (num_layers, channel_base, ...)."""
        super().__init__()
        self.z_dim, self.c_dim, self.w_dim = z_dim, c_dim, w_dim
        self.img_resolution, self.img_channels = img_resolution, img_channels
        self.mapping_kwargs, self.synthesis_kwargs = dict(mapping_kwargs or {}), dict(synthesis_kwargs or {})
        self.synthesis = SynthesisNetwork(w_dim, img_resolution, img_channels, **self.synthesis_kwargs)
        self.num_ws = self.synthesis.num_ws
        self.mapping = MappingNetwork(z_dim, c_dim, w_dim, self.num_ws, **self.mapping_kwargs)

    @property
    def config(self) -> Mapping[str, Any]:
        """The constructor's arguments."""
        return {
            "z_dim": self.z_dim,
            "c_dim": self.c_dim,
            "w_dim": self.w_dim,
            "img_resolution": self.img_resolution,
            "img_channels": self.img_channels,
            "mapping_kwargs": self.mapping_kwargs,
            "synthesis_kwargs": self.synthesis_kwargs,
        }
