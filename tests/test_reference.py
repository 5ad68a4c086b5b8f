"""The engine against the plain loop of `benchmarks/reference.py`: same configuration and seeds, same result."""

import pytest
import torch
from nvidia_files import random_generator

from benchmarks.reference import invert
from pti_core.generators.base import Generator
from pti_core.perceptual import load_lpips, reference_lpips
from pti_core.pivot import find_pivots
from pti_core.presets import configure
from pti_core.sampling import seed_for, w_statistics
from pti_core.tuning import tune

STEPS = {"pivot.steps": 12, "tuning.steps": 8, "tuning.stop_lpips": 0.0}


@pytest.fixture(scope="module", params=["mobilestylegan", "stylegan2"])
def generator(request, tiny_generator) -> Generator:
    return tiny_generator if request.param == "mobilestylegan" else random_generator(32)


@pytest.fixture(scope="module")
def target(generator) -> torch.Tensor:
    with torch.no_grad():
        z = torch.randn(1, generator.z_dim, generator=torch.Generator().manual_seed(3))
        image = generator.synthesis(generator.mapping(z)).clamp(-1, 1)[0]
    image[:, 8:14, 4:28] = 0.8
    return image


@pytest.mark.parametrize(
    "settings", [{}, {"pivot.noise_init": "const", "pivot.mse_weight": 0.1}, {"locality.enabled": False}]
)
def test_the_engine_finds_what_the_plain_loop_finds(generator: Generator, target, settings):
    config = configure("paper", {**STEPS, **settings})
    of_w, lpips = w_statistics(generator, 500), load_lpips()
    seen = []
    plain = invert(
        generator,
        target,
        "a.png",
        config,
        of_w.w_avg,
        of_w.w_std,
        reference_lpips(),
        lambda stage, step, value: seen.append((stage, step)),
    )
    seeds = {stage: [seed_for("a.png", stage, config.seed)] for stage in ("pivot", "tuning")}
    found = find_pivots(generator, target[None], seeds["pivot"], config.pivot, of_w, lpips)
    assert (found.w - of_w.w_avg).norm() > 0.01  # it has moved at all
    torch.testing.assert_close(found.w, plain.w, atol=2e-4, rtol=0)
    for a, b in zip(found.noise, plain.noise, strict=True):
        torch.testing.assert_close(a, b, atol=5e-3, rtol=0)

    ours = tune(generator, target[None], found, seeds["tuning"], config.tuning, config.locality, lpips)
    ws = found.w.expand(1, generator.num_ws, -1)
    with torch.no_grad():
        a, b, base = (g.synthesis(ws, noise=found.noise) for g in (ours.generator, plain.generator, generator))
    assert (b - base).abs().max() > 20 * (a - b).abs().max()  # they differ far less than tuning has changed
    assert seen == [("pivot", n) for n in range(1, 13)] + [("tuning", n) for n in range(1, 9)]
