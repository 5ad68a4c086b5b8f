"""StyleGAN2 with the parameter names of NVIDIA's stylegan2-ada-pytorch, so that state dicts fit both ways.

Every synthesis architecture (`skip`, `orig`, `resnet`), any power-of-two resolution, any size of z and w, conditional
or not. All of it runs in float32; `with_precision("half")` runs its top resolutions in half precision.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from pti_core.generators.base import NoiseMode, Style
from pti_core.generators.half import HALF_RESOLUTIONS, HalfPass, Precision, half_dtype
from pti_core.generators.mapping import MappingNetwork
from pti_core.generators.network import GeneratorNetwork
from pti_core.generators.noise import noise_maps
from pti_core.generators.resampling import TAPS, fir_kernel, upsample2d
from pti_core.generators.stylegan2_layers import SkipConv, SynthesisLayer, ToRGBLayer

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
        taps = layer.get("resample_filter", TAPS)
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
        self,
        x: Tensor | None,
        img: Tensor | None,
        ws: Tensor,
        noise: Sequence[Tensor | None],
        half: HalfPass | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Take features, image so far, ws `[N, num_conv + num_torgb, w_dim]`, noise; give both at this resolution.

        With `half` the features are in its dtype (float32 ones are cast); the image is always float32.
        """
        if x is None:
            x = self.const[None].expand(len(ws), -1, -1, -1)
            x = self.conv1(x, ws[:, 0], noise[0])
        else:
            x = half.enter(x) if half is not None and x.dtype != half.dtype else x
            root = math.sqrt(0.5) if self.architecture == "resnet" else 1.0  # two paths add up to variance one
            y = self.skip(x, root, half) if self.architecture == "resnet" else None
            x = self.conv0(x, ws[:, 0], noise[0], half=half)
            x = self.conv1(x, ws[:, 1], noise[1], root, half)
            x = x if y is None else y + x
        if img is not None:
            img = upsample2d(img, self.resample_filter)
        if self.num_torgb:
            rgb = self.torgb(x, ws[:, self.num_conv], half)
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
        channels: Sequence[int] | None = None,
        **layer: Any,
    ) -> None:
        """Channels: `min(channel_base // resolution, channel_max)`, or one number a resolution from 4 up."""
        super().__init__()
        if img_resolution < 8 or img_resolution & (img_resolution - 1):
            raise ValueError(f"img_resolution {img_resolution}: a power of two from 8 expected")
        if architecture not in ("skip", "orig", "resnet"):
            raise ValueError(f"architecture {architecture!r}: 'skip', 'orig' or 'resnet' expected")
        self.w_dim, self.img_resolution = w_dim, img_resolution
        self.precision: Precision = "fp32"
        # 4x4 never is among them, as in NVIDIA's code.
        self.half_from = max(2 * img_resolution >> (num_fp16_res or HALF_RESOLUTIONS), 8)
        self.block_resolutions = [2**i for i in range(2, int(math.log2(img_resolution)) + 1)]
        widths = [min(channel_base // r, channel_max) for r in self.block_resolutions] if channels is None else channels
        if len(widths) != len(self.block_resolutions):
            raise ValueError(f"channels {list(widths)}: {len(self.block_resolutions)} numbers expected, 4 pixels first")
        self.num_ws = 0
        for r, c_in, c_out in zip(self.block_resolutions, [0, *widths], widths, strict=False):
            last = r == img_resolution
            block = SynthesisBlock(c_in, c_out, w_dim, r, img_channels, last, architecture, **layer)
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
        """Draw `[N, img_channels, R, R]`, about [-1, 1], from ws `[N, num_ws, w_dim]`; float32 in every precision.

        `noise`: one `[N or 1, 1, H, W]` map a layer, unit variance; overrides `noise_mode`.
        Raises ValueError where ws, the mode or the maps do not fit.
        """
        if ws.ndim != 3 or ws.shape[1:] != (self.num_ws, self.w_dim):
            raise ValueError(f"ws of shape {list(ws.shape)}: [N, {self.num_ws}, {self.w_dim}] expected")
        maps = iter(noise_maps(self.layers, len(ws), noise_mode, noise))
        dtype = half_dtype(self.precision, ws.device)
        half = None if dtype is None else HalfPass(dtype)
        x = img = None
        slot = 0
        for block in self.blocks:
            block_ws = ws[:, slot : slot + block.num_conv + block.num_torgb]
            slot += block.num_conv
            block_noise = [next(maps) if layer.use_noise else None for layer in block.layers]
            x, img = block(x, img, block_ws, block_noise, half if block.resolution >= self.half_from else None)
        assert img is not None
        return img if half is None else half.watch(img)


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
        """`mapping_kwargs` and `synthesis_kwargs` as in NVIDIA's constructor (num_layers, channel_base, ...).

        `channels` beside them gives one number a resolution, for generators that NVIDIA's formula does not describe.
        Raises ValueError for a resolution, an architecture or channels that cannot be.
        """
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

    def styles(self) -> list[Style]:
        """Of every convolution and the last image layer; the other image layers share the slot of what comes after."""
        last = self.synthesis.blocks[-1]
        layers = [layer for block in self.synthesis.blocks for layer in block.layers]
        found = [Style(layer.resolution, layer.affine.weight) for layer in layers]
        return [*found, Style(last.resolution, last.torgb.affine.weight)]

    def with_precision(self, precision: Precision) -> Self:
        """The same generator in float32, or with its top `num_fp16_res` resolutions (4 if that is 0) in half precision.

        Both share all weights, which stay float32, as do images, gradients and files; a copy of the result keeps its
        precision. `half` is fp16 on a GPU and bf16 on a CPU. Those layers scale their weights so that no sum overflows,
        and clip features at their `conv_clamp`; without one they clip at 512, far above what layers give.

        Raises ValueError for another word.
        """
        return super().with_precision(precision)
