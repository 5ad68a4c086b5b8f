"""Adam along the directions that a layer's inputs vary in."""

import pytest
import torch

from pti_core.bases import SAMPLES, input_bases, turned, turned_back
from pti_core.config import LocalityConfig, TuningConfig
from pti_core.perceptual import load_lpips
from pti_core.pivot import PivotConfig, find_pivots
from pti_core.sampling import w_statistics
from pti_core.stacked import tune_stack
from pti_core.tuning import tune
from tests.test_stacked import generators

OFF = LocalityConfig(enabled=False)
CONFIG = TuningConfig(steps=3, lr=1e-2, stop_lpips=0.0, pull=0.05)


@pytest.fixture(scope="module", params=["mobilestylegan", "stylegan2"])
def problem(request, tiny_generator):
    generator = generators(tiny_generator)[request.param]
    of_w = w_statistics(generator, 200)
    with torch.no_grad():
        targets = generator.synthesis(of_w.samples[:2, None].expand(-1, generator.num_ws, -1)).clamp(-1, 1)
    targets[:, :, 8:14, 4:28] = 0.8
    pivots = find_pivots(generator, targets, [1, 2], PivotConfig(steps=3), of_w, load_lpips())
    return generator, targets, pivots, input_bases(generator, of_w.samples), of_w


def test_bases_are_orthonormal_and_of_every_weight_that_mixes_channels(problem):
    generator, _, _, bases, _ = problem
    parameters = generator.tunable()
    assert set(bases) == {n for n, p in parameters.items() if p.ndim >= 2 and p.shape[1] > 1 and "const" not in n}
    for name, basis in bases.items():
        torch.testing.assert_close(basis.T @ basis, torch.eye(parameters[name].shape[1]), atol=1e-4, rtol=0)
        values = torch.randn(parameters[name].shape)
        torch.testing.assert_close(turned_back(turned(values, basis), basis), values, atol=1e-4, rtol=1e-4)


def test_inputs_are_uncorrelated_along_their_basis(problem):
    """Of the maps from w to styles, whose inputs are known without looking into the network."""
    _, _, _, bases, of_w = problem
    basis = bases[next(name for name in bases if name.endswith("affine.weight"))]
    moment = basis.T @ (of_w.samples.T @ of_w.samples) @ basis
    off = moment - torch.diag(moment.diagonal())
    assert off.abs().max() < 1e-3 * moment.diagonal().max()
    assert len(of_w.samples) > SAMPLES


def test_axes_of_their_own_change_nothing_and_other_axes_do(problem):
    generator, targets, pivots, bases, _ = problem
    own = {name: torch.eye(len(basis)) for name, basis in bases.items()}
    plain, same, other = (
        tune(generator, targets[:1], pivots[:1], [0], CONFIG, OFF, load_lpips(), bases=b) for b in (None, own, bases)
    )
    flat = [torch.cat([d.ravel() for d in t.delta(generator).values()]) for t in (plain, same, other)]
    assert (flat[0] - flat[1]).norm() < 1e-2 * flat[0].norm()
    assert (flat[0] - flat[2]).norm() > 0.1 * flat[0].norm()


def test_a_stack_works_along_them_as_single_images_do(problem):
    generator, targets, pivots, bases, _ = problem
    stacked = tune_stack(generator, targets, pivots, [0, 1], CONFIG, OFF, load_lpips(), bases=bases)
    for i, one in enumerate(stacked):
        part = slice(i, i + 1)
        alone = tune(generator, targets[part], pivots[part], [i], CONFIG, OFF, load_lpips(), bases=bases)
        torch.testing.assert_close(one.lpips, alone.lpips, atol=1e-3, rtol=1e-2)
