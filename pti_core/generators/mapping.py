"""The mapping network f(z) that both StyleGAN2 families share (parameter names as in stylegan2-ada-pytorch)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pti_core.generators.base import truncate


def normalize_2nd_moment(x: Tensor, dim: int = 1, eps: float = 1e-8) -> Tensor:
    """Scale x to a mean square of one along `dim` (the "pixel norm" of StyleGAN)."""
    return x * (x.square().mean(dim=dim, keepdim=True) + eps).rsqrt()


class FullyConnectedLayer(nn.Module):
    """A linear layer with equalised learning rate: the stored weight is about N(0, 1), the gain is applied when used.

    `lr_multiplier` scales weight and bias alike (StyleGAN, appendix C; 0.01 in the mapping network).
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        activation: str = "linear",
        lr_multiplier: float = 1.0,
        bias_init: float = 0.0,
    ) -> None:
        super().__init__()
        if activation not in ("linear", "lrelu"):
            raise ValueError(f"activation {activation!r}: 'linear' or 'lrelu' expected")
        self.activation = activation
        self.weight = nn.Parameter(torch.randn(out_features, in_features) / lr_multiplier)
        self.bias = nn.Parameter(torch.full([out_features], float(bias_init) / lr_multiplier))
        self.weight_gain = lr_multiplier / math.sqrt(in_features)
        self.bias_gain = lr_multiplier

    def forward(self, x: Tensor) -> Tensor:
        """Map `[N, in_features]` to `[N, out_features]`."""
        # The gain goes to the small side, the input, so that no scaled copy of the weight is made.
        y = F.linear(x * self.weight_gain, self.weight)
        y = y + (self.bias if self.bias_gain == 1 else self.bias * self.bias_gain)
        return F.leaky_relu(y, 0.2) * math.sqrt(2.0) if self.activation == "lrelu" else y


class MappingNetwork(nn.Module):
    """Pixel norm, then fully connected layers; the result is broadcast to all `num_ws` style slots."""

    w_avg: Tensor

    def __init__(
        self,
        z_dim: int,
        c_dim: int,
        w_dim: int,
        num_ws: int,
        num_layers: int = 8,
        embed_features: int | None = None,
        layer_features: int | None = None,
        lr_multiplier: float = 0.01,
    ) -> None:
        super().__init__()
        self.z_dim, self.c_dim, self.w_dim, self.num_ws, self.num_layers = z_dim, c_dim, w_dim, num_ws, num_layers
        embed_features = (w_dim if embed_features is None else embed_features) if c_dim > 0 else 0
        hidden = w_dim if layer_features is None else layer_features
        widths = [z_dim + embed_features, *[hidden] * (num_layers - 1), w_dim]
        if c_dim > 0:
            self.embed = FullyConnectedLayer(c_dim, embed_features)
        for i in range(num_layers):
            setattr(self, f"fc{i}", FullyConnectedLayer(widths[i], widths[i + 1], "lrelu", lr_multiplier))
        self.register_buffer("w_avg", torch.zeros(w_dim))

    def forward(
        self, z: Tensor, c: Tensor | None = None, truncation_psi: float = 1.0, truncation_cutoff: int | None = None
    ) -> Tensor:
        """Map z `[N, z_dim]` (and c `[N, c_dim]` of a conditional generator) to ws `[N, num_ws, w_dim]`.

        Raises ValueError where z or c has another size than the network's.
        """
        if z.ndim != 2 or z.shape[1] != self.z_dim:
            raise ValueError(f"z of shape {list(z.shape)}: [N, {self.z_dim}] expected")
        x = normalize_2nd_moment(z.to(torch.float32))
        if self.c_dim > 0:
            if c is None or c.shape != (len(z), self.c_dim):
                found = "none" if c is None else str(list(c.shape))
                raise ValueError(f"class labels c: [{len(z)}, {self.c_dim}] expected, got {found}")
            x = torch.cat([x, normalize_2nd_moment(self.embed(c.to(torch.float32)))], dim=1)
        for i in range(self.num_layers):
            x = getattr(self, f"fc{i}")(x)
        ws = x.unsqueeze(1).expand(-1, self.num_ws, -1)
        return truncate(ws, self.w_avg, truncation_psi, truncation_cutoff)
