"""The search for the pivot."""

import math

import pytest
import torch

from pti_core.config import PivotConfig
from pti_core.perceptual import load_lpips
from pti_core.pivot import find_pivots, initial_noise, learning_rate, noise_autocorrelation, normalize_noise
from pti_core.sampling import ImageRandom, w_statistics


@pytest.fixture(scope="module")
def statistics(tiny_generator):
    return w_statistics(tiny_generator, 1000)


@pytest.fixture(scope="module")
def targets(tiny_generator):
    """Samples of the generator itself: a pivot that draws them exists."""
    with torch.no_grad():
        z = torch.randn(4, tiny_generator.z_dim, generator=torch.Generator().manual_seed(3))
        return tiny_generator.synthesis(tiny_generator.mapping(z)).clamp(-1, 1)


def search(generator, targets, statistics, seeds=None, on_step=None, **config):
    config = PivotConfig(**({"steps": 30, "noise_weight": 10.0} | config))
    seeds = list(range(len(targets))) if seeds is None else seeds
    return find_pivots(generator, targets, seeds, config, statistics, load_lpips(), on_step)


def test_learning_rate_rises_stays_and_falls():
    rates = [learning_rate(step, 100, 0.05, 0.25) for step in range(100)]
    assert rates[0] == pytest.approx(0.2)
    assert rates[4:75] == pytest.approx([1.0] * 71)
    assert rates[87] == pytest.approx(0.5 - 0.5 * math.cos(math.pi * 0.13 / 0.25))
    assert rates[99] < 0.01
    assert [learning_rate(s, 10, 0, 0) for s in (0, 9)] == [1, 1]


def slow_autocorrelation(noise):
    """Explicit sums over all pixels and shifts, in float64."""
    total = 0.0
    for level in noise:
        level = level.double()
        while True:
            h, w = level.shape
            right = sum(level[y, x] * level[y, (x - 1) % w] for y in range(h) for x in range(w)) / (h * w)
            down = sum(level[y, x] * level[(y - 1) % h, x] for y in range(h) for x in range(w)) / (h * w)
            total += right**2 + down**2
            if h <= 8:
                break
            level = (level[::2, ::2] + level[1::2, ::2] + level[::2, 1::2] + level[1::2, 1::2]) / 4
    return total


def test_noise_autocorrelation_against_explicit_sums():
    noise = [torch.randn(2, 1, s, s, generator=torch.Generator().manual_seed(s)) for s in (4, 8, 16)]
    fast = noise_autocorrelation(noise)
    for i in range(2):
        slow = slow_autocorrelation([n[i, 0] for n in noise])
        assert fast[i].item() == pytest.approx(slow.item(), rel=1e-4)


def test_normalised_noise_has_zero_mean_and_unit_variance_for_each_image():
    noise = [torch.randn(3, 1, 16, 16) * torch.tensor([1.0, 5, 0.1]).view(3, 1, 1, 1) + 2]
    normalize_noise(noise)
    torch.testing.assert_close(noise[0].mean(dim=(1, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(noise[0].square().mean(dim=(1, 2, 3)), torch.ones(3), atol=1e-3, rtol=0)


def test_finds_what_the_generator_can_draw(tiny_generator, targets, statistics):
    seen = []
    pivots = search(tiny_generator, targets, statistics, steps=80, on_step=lambda s, d: seen.append((s, d)))
    assert [step for step, _ in seen] == list(range(1, 81))
    first, last = seen[0][1], seen[-1][1]
    assert (last < 0.4 * first).all(), (first, last)
    assert pivots.w.shape == (4, 1, tiny_generator.w_dim)
    assert pivots.ws.shape == (4, tiny_generator.num_ws, tiny_generator.w_dim)
    for n, shape in zip(pivots.noise, tiny_generator.noise_shapes, strict=True):
        assert n.shape == (4, 1, *shape)
        torch.testing.assert_close(n.mean(dim=(1, 2, 3)), torch.zeros(4), atol=1e-4, rtol=0)


def test_the_generator_is_not_touched(tiny_generator, targets, statistics):
    before = {k: v.clone() for k, v in tiny_generator.state_dict().items()}
    search(tiny_generator, targets[:1], statistics, steps=3)
    assert all(torch.equal(v, before[k]) for k, v in tiny_generator.state_dict().items())
    assert all(p.grad is None for p in tiny_generator.parameters())


def test_a_batch_finds_what_its_images_find_alone(tiny_generator, targets, statistics):
    together = search(tiny_generator, targets, statistics)
    lpips = load_lpips()
    for i in range(4):
        alone = search(tiny_generator, targets[i : i + 1], statistics, seeds=[i])
        with torch.no_grad():
            a = lpips(
                tiny_generator.synthesis(together[i : i + 1].ws, noise=together[i : i + 1].noise), targets[i : i + 1]
            )
            b = lpips(tiny_generator.synthesis(alone.ws, noise=alone.noise), targets[i : i + 1])
        assert a.item() == pytest.approx(b.item(), abs=1e-3)


def test_w_plus_has_a_w_for_every_layer_and_fits_better(tiny_generator, targets, statistics):
    lpips = load_lpips()
    distance = {}
    for space in ("w", "w+"):
        # A target that no single w draws: two samples mixed.
        pivots = search(tiny_generator, targets[:2].flip(3), statistics, space=space, steps=60)
        with torch.no_grad():
            images = tiny_generator.synthesis(pivots.ws, noise=pivots.noise)
            distance[space] = lpips(images, targets[:2].flip(3)).mean().item()
    assert pivots.w.shape == (2, tiny_generator.num_ws, tiny_generator.w_dim)
    assert distance["w+"] < distance["w"]


def test_noise_starts_from_the_generators_own_or_from_the_seed(tiny_generator):
    own = initial_noise(tiny_generator, ImageRandom([1, 2]), PivotConfig(noise_init="const"))
    assert torch.equal(own[-1][0], own[-1][1])
    drawn = initial_noise(tiny_generator, ImageRandom([1, 2]), PivotConfig(noise_init="random"))
    assert not torch.allclose(drawn[-1][0], drawn[-1][1])
    again = initial_noise(tiny_generator, ImageRandom([2]), PivotConfig(noise_init="random"))
    torch.testing.assert_close(again[-1][0], drawn[-1][1])


def test_noise_stays_where_it_is_not_optimised(tiny_generator, targets, statistics):
    pivots = search(tiny_generator, targets[:1], statistics, optimise_noise=False, steps=3)
    start = initial_noise(tiny_generator, ImageRandom([0]), PivotConfig())
    assert all(torch.equal(a, b) for a, b in zip(pivots.noise, start, strict=True))


def test_bad_targets_are_named(tiny_generator, targets, statistics):
    with pytest.raises(ValueError, match=r"\[4, 3, 16, 16\]"):
        search(tiny_generator, targets[:, :, ::2, ::2], statistics)
    with pytest.raises(ValueError, match="2 seeds for 4 images"):
        search(tiny_generator, targets, statistics, seeds=[1, 2])
