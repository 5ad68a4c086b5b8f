"""What tests share: tiny generators, quick to run and real in every other way."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "2")

import pytest
import torch

from pti_core.generators.mobilestylegan import MobileStyleGAN


@pytest.fixture(scope="session")
def tiny_generator() -> MobileStyleGAN:
    """An untrained generator of 32 x 32 images whose noise matters and whose w_avg is that of its samples."""
    torch.manual_seed(0)
    generator = MobileStyleGAN([32, 32, 16], z_dim=16, w_dim=24, num_layers=4).eval().requires_grad_(False)
    for layer in generator.synthesis.layers:
        layer.noise_strength.fill_(0.1)
    generator.mapping.w_avg.copy_(generator.mapping(torch.randn(1000, 16))[:, 0].mean(0))
    return generator
