"""Random numbers that belong to an image, and the statistics of W."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from pti_core.generators.base import Generator

MAPPING_BATCH = 1000


def seed_for(name: str, purpose: str, seed: int = 0) -> int:
    """A seed, below 2^63, from an image's (or group's) id: the same whatever the batch, the shard or the order.

    (torch's generators on a CPU take its lower 32 bits: of a million images about a hundred pairs share their numbers.)
    """
    digest = hashlib.sha256(f"{seed}\0{purpose}\0{name}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


class ImageRandom:
    """One random stream an image, so that a batch draws what each of its images would draw alone.

    Streams live on the CPU: the same numbers on every device.
    """

    def __init__(self, seeds: Sequence[int], device: torch.device | str = "cpu") -> None:
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self.device = device

    def randn(self, *shape: int) -> Tensor:
        """N(0, 1) of shape `[len(seeds), *shape]`."""
        return torch.stack([torch.randn(shape, generator=g) for g in self.generators]).to(self.device)

    def randint(self, high: int) -> Tensor:
        """Uniform integers below `high`, `[len(seeds)]`."""
        return torch.cat([torch.randint(high, (1,), generator=g) for g in self.generators]).to(self.device)


def sample_w(generator: Generator, random: ImageRandom) -> Tensor:
    """One mapped sample w_z = f(z), z ~ N(0, I), for each stream: `[N, w_dim]`; a random class where there are any."""
    z = random.randn(generator.z_dim)
    c = F.one_hot(random.randint(generator.c_dim), generator.c_dim).float() if generator.c_dim else None
    with torch.no_grad():
        return generator.mapping(z, c)[:, 0]


@dataclass(frozen=True)
class WStatistics:
    """What W looks like: the start of the pivot, the scale of exploration, and of alpha."""

    w_avg: Tensor  # [w_dim]
    w_std: float  # root of the mean squared distance to w_avg (as in the projector of StyleGAN2)
    mean_distance: float  # mean ||w1 - w2|| of two samples
    samples: Tensor  # [N, w_dim], the samples themselves, for principal components


def w_statistics(generator: Generator, samples: int = 10_000, seed: int = 0) -> WStatistics:
    """Map `samples` z's and measure; the same seed gives the same samples for a generator."""
    device = generator.mapping.w_avg.device
    rng = torch.Generator().manual_seed(seed)
    z = torch.randn(samples, generator.z_dim, generator=rng).to(device)
    c = None
    if generator.c_dim:
        c = F.one_hot(torch.randint(generator.c_dim, (samples,), generator=rng), generator.c_dim).float().to(device)
    with torch.no_grad():
        parts = range(0, samples, MAPPING_BATCH)
        w = torch.cat(
            [
                generator.mapping(z[i : i + MAPPING_BATCH], None if c is None else c[i : i + MAPPING_BATCH])[:, 0]
                for i in parts
            ]
        )
    w_avg = w.mean(dim=0)
    half = samples // 2
    return WStatistics(
        w_avg=w_avg,
        w_std=(w - w_avg).square().sum(dim=1).mean().sqrt().item(),
        mean_distance=(w[:half] - w[half : 2 * half]).norm(dim=1).mean().item(),
        samples=w,
    )
