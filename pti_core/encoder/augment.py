"""What real images have and a generator's samples have not: other colours, blur, things that it cannot draw."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

SHAPES = 3  # at most, in one image


def augment(image: Tensor, rng: torch.Generator) -> Tensor:
    """Another view of an image `[C, H, W]` in [-1, 1] that the same w should draw; `rng` on the CPU decides how.

    Contrast and colours change a little always, one image in three is blurred, every other one gets painted shapes
    over up to a fifth of its area. Nothing is moved: where a face is, w says.
    """
    channels, size, device = image.shape[0], image.shape[1], image.device

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return (low + (high - low) * torch.rand(shape, generator=rng)).to(device)

    gain, shift = uniform(0.85, 1.15) * uniform(0.95, 1.05, channels, 1, 1), uniform(-0.1, 0.1, channels, 1, 1)
    image = image * gain + shift
    if uniform(0, 1).item() < 1 / 3:
        small = max(8, int(size / uniform(1.3, 3).item()))
        image = F.interpolate(image[None], size=(small, small), mode="area")
        image = F.interpolate(image, size=(size, size), mode="bilinear", align_corners=False)[0]
    if uniform(0, 1).item() < 1 / 2:
        for _ in range(int(torch.randint(1, SHAPES + 1, (1,), generator=rng).item())):
            image = _paint(image, rng)
    return image.clamp(-1, 1)


def _paint(image: Tensor, rng: torch.Generator) -> Tensor:
    """An ellipse or a rectangle, turned somehow, of one colour and some opacity."""
    size, device = image.shape[1], image.device
    values = torch.rand(8, generator=rng).tolist()
    axis = (torch.arange(size, device=device) + 0.5) / size
    x, y = axis[None, :] - values[0], axis[:, None] - values[1]
    angle = torch.tensor(values[2] * torch.pi, device=device)
    along = (x * angle.cos() + y * angle.sin()) / (0.04 + 0.16 * values[3])
    across = (y * angle.cos() - x * angle.sin()) / (0.04 + 0.16 * values[4])
    inside = (along.square() + across.square() < 1) if values[5] < 0.5 else (along.abs() < 0.9) & (across.abs() < 0.9)
    colour = (torch.rand(image.shape[0], generator=rng) * 2 - 1).to(device)[:, None, None]
    opacity = inside * (0.6 + 0.4 * values[6])
    return image + opacity * (colour - image)
