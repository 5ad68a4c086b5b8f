"""LPIPS (Zhang et al. 2018) with the target's features computed once.

The nets and linear weights are the `lpips` package's own; AlexNet's convolutions come with this package, since
torchvision would download them. Features are normalised and weighted when they are made, so that a distance is one
sum of squared differences and a target costs nothing after its first time.
"""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pti_core.machine.matmul import convolution
from pti_core.once import once

ASSETS = Path(__file__).parent / "assets"
MIN_RESOLUTION = 32  # AlexNet's last feature map is still 1 x 1 here
Features = list[Tensor]


def _import_lpips() -> Any:
    """Import `lpips`, whose import of torchvision fails where torchvision's native extension cannot load.

    (A CPU-only torch beside the registry's torchvision.) Two operators that torchvision only registers fake kernels
    for are declared then; nothing here calls them.
    """
    try:
        import torchvision  # noqa: F401
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
        for name, signature in (
            ("nms", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"),
            ("qnms", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"),
        ):
            torch.library.define(f"torchvision::{name}", signature)
    import lpips

    return lpips


def reference_lpips(net: str = "alex") -> Any:
    """The `lpips` package's own module with the shipped convolutions: the slow truth of the tests.

    Raises ValueError for a net whose convolutions are not shipped.
    """
    if net != "alex":
        raise ValueError(f"LPIPS net {net!r}: only 'alex' is shipped")
    lpips = _import_lpips()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torchvision's deprecation of `pretrained=`, which lpips passes
        module: Any = lpips.LPIPS(net=net, pnet_rand=True, verbose=False)
    weights = safetensors.torch.load_file(ASSETS / "alexnet_features.safetensors")
    convolutions = {name: child for part in module.net.children() for name, child in part.named_children()}
    for name, child in convolutions.items():
        if isinstance(child, nn.Conv2d):
            child.load_state_dict({k: weights.pop(f"features.{name}.{k}") for k in ("weight", "bias")})
    if weights:
        raise ValueError(f"alexnet_features.safetensors: {sorted(weights)} not used by the lpips package's net")
    return module.eval().requires_grad_(False)


class _Conv2d(nn.Conv2d):
    """At stride 1 and with the same padding on all sides, by `matmul.convolution`."""

    def forward(self, x: Tensor) -> Tensor:
        return convolution(x, self.weight, self.bias, int(self.padding[0]))


def _layer(layer: nn.Module) -> nn.Module:
    if not isinstance(layer, nn.Conv2d) or layer.stride != (1, 1):
        return layer
    new = _Conv2d(layer.in_channels, layer.out_channels, layer.kernel_size, padding=layer.padding)  # type: ignore[arg-type]
    new.load_state_dict(layer.state_dict())
    return new


class LPIPS(nn.Module):
    """LPIPS v0.1 as features and a distance between them.

    Images are `[N, 3, H, W]` (or one channel, repeated) in [-1, 1], at least 32 x 32.
    """

    net_dtype: torch.dtype | None = None  # of the net after its first convolution, where it is not the images'

    shift: Tensor
    scale: Tensor

    def __init__(self, net: str = "alex") -> None:
        super().__init__()
        reference = reference_lpips(net)
        self.name = net
        self.slices = nn.ModuleList(nn.Sequential(*map(_layer, part)) for part in reference.net.children())
        self.register_buffer("shift", reference.scaling_layer.shift)
        self.register_buffer("scale", reference.scaling_layer.scale)
        for i, lin in enumerate(reference.lins):
            weight = lin.model[-1].weight
            if (weight < 0).any():
                raise ValueError(f"LPIPS {net}: linear layer {i} has negative weights, no square root of them exists")
            self.register_buffer(f"root{i}", weight.sqrt())
        self.requires_grad_(False)

    def in_half_precision(self) -> LPIPS:
        """A copy for losses whose net computes in bf16.

        All but its first convolution: rounded to bf16, images would lose what two near ones differ by. Where the
        processor multiplies bf16 the rest takes half the time. Distances are within a hundredth of the float32 ones,
        gradients point the same way (a cosine of 0.994 and more), also near the target: both sides are rounded alike.
        """
        new = copy.deepcopy(self)
        new.slices[1:].to(torch.bfloat16)
        new.net_dtype = torch.bfloat16
        return new

    def features(self, images: Tensor) -> Features:
        """Unit-length, weighted features, one `[N, C, h, w]` a layer; divided by sqrt(h w), so sums are means.

        Raises ValueError for images of another shape, or below 32 x 32.
        """
        if images.shape[1] == 1:
            images = images.expand(-1, 3, -1, -1)
        if images.ndim != 4 or images.shape[1] != 3 or min(images.shape[2:]) < MIN_RESOLUTION:
            raise ValueError(f"LPIPS: images of shape {list(images.shape)}; [N, 3, >= 32, >= 32] expected")
        # With channels last in memory, float32 convolutions of oneDNN 3.12 can go wrong (see `first_pass`).
        x = (images.contiguous() - self.shift) / self.scale
        features = []
        for i, part in enumerate(self.slices):
            x = part(x.to(self.net_dtype) if i and self.net_dtype else x)
            found = x.to(images.dtype)
            norm = found.square().sum(dim=1, keepdim=True).sqrt() + 1e-10
            root = getattr(self, f"root{i}") / (x.shape[2] * x.shape[3]) ** 0.5
            features.append(found / norm * root)
        return features

    @staticmethod
    def distance(a: Features, b: Features) -> Tensor:
        """LPIPS `[N]` between two lots of features; one of the two may hold a single image (broadcast)."""
        return torch.stack([(x - y).square().sum(dim=(1, 2, 3)) for x, y in zip(a, b, strict=True)]).sum(dim=0)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """LPIPS `[N]` between images. Raises ValueError as `features` does."""
        return self.distance(self.features(a), self.features(b))


@once(keep=4)
def load_lpips(net: str = "alex", device: str = "cpu") -> LPIPS:
    """The net, loaded once for a process and device."""
    return LPIPS(net).eval().to(device)


def area_downsample(images: Tensor, resolution: int) -> Tensor:
    """Reduce `[N, C, H, W]` to at most `resolution` by area averaging; smaller images are returned as they are."""
    if max(images.shape[2:]) <= resolution:
        return images
    return F.interpolate(images, size=(resolution, resolution), mode="area")
