"""Adam along the directions that a layer's inputs vary in."""

import pytest
import torch

from pti_core.bases import SAMPLES, Bases, input_bases, turned, turned_back
from pti_core.config import LocalityConfig, TuningConfig
from pti_core.perceptual import load_lpips
from pti_core.pivot import PivotConfig, find_pivots
from pti_core.sampling import w_statistics
from pti_core.stacked import tune_stack
from pti_core.tuning import tune, tuned_names
from tests.test_stacked import generators

LOCALITY = LocalityConfig()
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


def test_bases_are_orthonormal_and_of_every_convolution_that_mixes_channels(problem):
    generator, _, _, bases, _ = problem
    parameters = generator.tunable()
    assert set(bases.of_layers) == {n for n, p in parameters.items() if p.ndim == 4 and p.shape[1] > 1}
    for name, basis in bases.of_layers.items():
        torch.testing.assert_close(basis.T @ basis, torch.eye(parameters[name].shape[1]), atol=1e-4, rtol=0)
        values = torch.randn(parameters[name].shape)
        torch.testing.assert_close(turned_back(turned(values, basis), basis), values, atol=1e-4, rtol=1e-4)


def test_samples_of_w_are_uncorrelated_along_their_basis(problem):
    _, _, _, bases, of_w = problem
    w = of_w.samples @ bases.of_w
    moment = w.T @ w
    off = moment - torch.diag(moment.diagonal())
    assert off.abs().max() < 1e-3 * moment.diagonal().max()
    assert len(w) > SAMPLES


def test_along_w_it_draws_the_same(problem):
    generator, _, pivots, bases, _ = problem
    along = bases.along_w(generator)
    with torch.no_grad():
        a, b = generator.synthesis(pivots.ws), along.synthesis(pivots.ws @ bases.of_w)
    torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


def test_axes_of_their_own_change_nothing_and_other_axes_do(problem):
    generator, targets, pivots, bases, _ = problem
    layers = {name: torch.eye(len(basis)) for name, basis in bases.of_layers.items()}
    own = Bases(torch.eye(generator.w_dim), layers)
    plain, same, other = (
        tune(generator, targets[:1], pivots[:1], [0], CONFIG, LOCALITY, load_lpips(), bases=b)
        for b in (None, own, bases)
    )
    flat = [torch.cat([d.ravel() for d in t.delta(generator).values()]) for t in (plain, same, other)]
    assert (flat[0] - flat[1]).norm() < 1e-2 * flat[0].norm()
    assert (flat[0] - flat[2]).norm() > 0.1 * flat[0].norm()


def test_what_is_tuned_draws_the_target_and_the_rest_stays_to_the_bit(problem):
    generator, targets, pivots, bases, _ = problem
    config = CONFIG.model_copy(update={"from_resolution": 8, "steps": 20, "lr": 3e-3})
    tuned = tune(generator, targets[:1], pivots[:1], [0], config, LOCALITY, load_lpips(), bases=bases)
    delta, names = tuned.delta(generator), tuned_names(generator, 8)
    assert all(bool(delta[name].any()) == (name in names) for name in delta)
    with torch.no_grad():
        before, after = (
            load_lpips()(g.synthesis(pivots[:1].ws, noise=pivots[:1].noise), targets[:1])
            for g in (generator, tuned.generator)
        )
    # Within the last step of what it had reached in the turned coordinates.
    assert tuned.lpips < 0.95 * before
    assert (after - tuned.lpips).abs() < 0.2 * (before - tuned.lpips)


def test_a_stack_works_along_them_as_single_images_do(problem):
    generator, targets, pivots, bases, _ = problem
    stacked = tune_stack(generator, targets, pivots, [0, 1], CONFIG, LOCALITY, load_lpips(), bases=bases)
    for i, one in enumerate(stacked):
        part = slice(i, i + 1)
        alone = tune(generator, targets[part], pivots[part], [i], CONFIG, LOCALITY, load_lpips(), bases=bases)
        torch.testing.assert_close(one.lpips, alone.lpips, atol=1e-3, rtol=1e-2)


def test_the_number_of_threads_changes_no_bit(problem):
    generator, _, _, bases, of_w = problem
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(threads % 2 + 1)
        alone = input_bases(generator, of_w.samples)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(alone.of_w, bases.of_w)
    assert all(torch.equal(alone.of_layers[name], basis) for name, basis in bases.of_layers.items())
