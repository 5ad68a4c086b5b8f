"""A generator for a group does not depend on the order of its images, nor on how many of them are drawn at once.

In float64, so that it is the mathematics that is compared: in float32 Adam magnifies the last bit of tiny gradients.
"""

import copy

import pytest
import torch

from pti_core.config import LocalityConfig, PivotConfig, TuningConfig
from pti_core.perceptual import load_lpips
from pti_core.pivot import Pivots, find_pivots
from pti_core.sampling import w_statistics
from pti_core.tuning import tune


@pytest.fixture(scope="module")
def group(tiny_generator):
    """Generator and LPIPS in float64; five images `[5, 3, 32, 32]` with a bar that it does not draw; their pivots."""
    z = torch.randn(5, tiny_generator.z_dim, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        images = tiny_generator.synthesis(tiny_generator.mapping(z)).clamp(-1, 1)
    images[:, :, 8:14, 6:26] = torch.tensor([0.9, -0.9, -0.2]).view(1, 3, 1, 1)
    statistics = w_statistics(tiny_generator, 300)
    found = find_pivots(tiny_generator, images, range(5), PivotConfig(steps=15), statistics, load_lpips())
    pivots = Pivots(found.w.double(), [n.double() for n in found.noise], found.num_ws)
    generator = copy.deepcopy(tiny_generator)
    generator.synthesis.double()  # samples w_z are drawn in float32 whatever the rest is
    return generator, copy.deepcopy(load_lpips()).double(), images.double(), pivots


def tuned(group, order, at_once=None, steps=12):
    """LPIPS of each image in the group's own order, and the weights."""
    generator, lpips, images, pivots = group
    config, locality = TuningConfig(steps=steps, lr=2e-3, stop_lpips=0.0), LocalityConfig(weight=0.5, samples=2)
    result = tune(generator, images[order], pivots[order], order, config, locality, lpips, at_once=at_once)
    back = torch.tensor(order).argsort()
    return result.lpips[back], torch.cat([d.flatten() for d in result.delta(generator).values()])


@pytest.mark.parametrize(
    ("order", "at_once"),
    [([4, 2, 0, 3, 1], None), ([0, 1, 2, 3, 4], 1), ([0, 1, 2, 3, 4], 2), ([3, 4, 1, 0, 2], 3)],
)
def test_order_and_how_many_are_drawn_at_once_change_nothing(group, order, at_once):
    lpips, weights = tuned(group, [0, 1, 2, 3, 4])
    other_lpips, other_weights = tuned(group, order, at_once)
    assert weights.abs().max() > 1e-3
    torch.testing.assert_close(other_lpips, lpips, atol=1e-7, rtol=1e-6)
    torch.testing.assert_close(other_weights, weights, atol=1e-6, rtol=1e-4)


def test_which_images_are_in_the_group_matters(group):
    """That the comparison above can fail."""
    weights, others = tuned(group, [0, 1, 2, 3, 4])[1], tuned(group, [0, 1, 2, 3])[1]
    assert (weights - others).abs().max() > 1e-3
