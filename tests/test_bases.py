"""Adam along the directions that a layer's inputs vary in."""

import pytest
import torch
from nvidia_files import random_generator
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from pti_core.bases import SAMPLES, Bases, Basis, Shares, input_bases, turned, turned_back
from pti_core.config import LocalityConfig, TuningConfig
from pti_core.engine import Engine
from pti_core.perceptual import load_lpips
from pti_core.pivot import PivotConfig, find_pivots
from pti_core.presets import configure
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
        own = torch.eye(parameters[name].shape[1])
        torch.testing.assert_close(basis.directions.T @ basis.directions, own, atol=1e-4, rtol=0)
        values = torch.randn(parameters[name].shape)
        torch.testing.assert_close(turned_back(turned(values, basis), basis), values, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("architecture", ["skip", "orig", "resnet"])
def test_no_convolution_of_any_architecture_is_left_out(architecture):
    generator = random_generator(32, architecture=architecture)
    found = input_bases(generator, torch.randn(4, generator.w_dim)).of_layers
    assert set(found) == {n for n, p in generator.tunable().items() if p.ndim == 4 and p.shape[1] > 1}
    assert any("skip" in name for name in found) == (architecture == "resnet")


def test_samples_of_w_are_uncorrelated_along_their_basis(problem):
    _, _, _, bases, of_w = problem
    w = bases.w_along(of_w.samples)
    moment = w.T @ w
    off = moment - torch.diag(moment.diagonal())
    torch.testing.assert_close(moment.diagonal() / moment.diagonal().mean(), bases.of_w.moments, atol=1e-3, rtol=1e-3)
    assert off.abs().max() < 1e-3 * moment.diagonal().max()
    assert len(w) > SAMPLES


def test_along_w_it_draws_the_same(problem):
    generator, _, pivots, bases, _ = problem
    along = bases.along_w(generator)
    with torch.no_grad():
        a, b = generator.synthesis(pivots.ws), along.synthesis(bases.w_along(pivots.ws))
    torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


def alike(basis):
    """The layer's own axes, all of them as much seen as the others."""
    return Basis(torch.eye(len(basis.moments)), torch.ones_like(basis.moments))


def test_axes_of_their_own_change_nothing_and_other_axes_do(problem):
    generator, targets, pivots, bases, _ = problem
    own = Bases(alike(bases.of_w), {name: alike(basis) for name, basis in bases.of_layers.items()})
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
    for one, other in [(alone.of_w, bases.of_w), *((alone.of_layers[n], b) for n, b in bases.of_layers.items())]:
        assert torch.equal(one.directions, other.directions) and torch.equal(one.moments, other.moments)


def test_a_move_changes_a_layers_outputs_by_the_moments_of_its_directions():
    torch.manual_seed(0)
    x = torch.randn(5000, 6, dtype=torch.double) * torch.tensor([4.0, 1, 0.5, 0.1, 0.1, 0.0])
    x[:, 1] += x[:, 0]
    basis, move = Basis.of(x.T @ x), torch.randn(3, 6)
    changed = (x.float() @ move.T).square().mean()
    expected = (turned(move, basis).square() * basis.moments).sum() / 3 * x.square().mean()
    torch.testing.assert_close(changed, expected.float(), rtol=1e-3, atol=0)


@pytest.mark.parametrize("shape", [(4, 3), (4, 3, 2, 2)])
def test_the_pull_takes_more_back_of_what_the_rest_of_w_sees_more(shape):
    basis = Basis(torch.eye(3), torch.tensor([0.0, 1.0, 1e6]))
    (shares,) = Shares([basis], [torch.zeros(shape)]).at(0.1)
    shares = shares.expand(shape)
    for i, share in enumerate([0.0, 0.1, 1.0]):
        torch.testing.assert_close(shares[:, i], torch.full_like(shares[:, i], share), atol=1e-4, rtol=0)


def test_the_pull_goes_along_the_directions(problem):
    generator, targets, pivots, bases, _ = problem
    config = TuningConfig(steps=1, lr=1e-2, stop_lpips=0.0)
    free, held = (
        tune(
            generator,
            targets[:1],
            pivots[:1],
            [0],
            config.model_copy(update={"pull": pull}),
            LOCALITY,
            load_lpips(),
            bases=bases,
        ).delta(generator)
        for pull in (0.0, 0.25)
    )
    for name, delta in free.items():
        basis = bases.of(name, delta)
        left = 0.75 if basis is None else 1 - Shares([basis], [delta]).at(0.25)[0]
        torch.testing.assert_close(turned(held[name], basis), left * turned(delta, basis), atol=1e-5, rtol=1e-3)


class _Products(TorchFunctionMode):
    """Whether products of matrices round their factors while in force."""

    def __init__(self):
        super().__init__()
        self.rounded = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in (torch.Tensor.matmul, torch.Tensor.__matmul__, torch.matmul, F.linear):
            self.rounded.append(torch.get_float32_matmul_precision() != "highest")
        return func(*args, **(kwargs or {}))


def test_what_is_made_once_is_exact_on_a_gpu_where_the_process_rounds(tiny_generator):
    """On a GPU that torch pretends to have."""
    engine = Engine(tiny_generator, configure("demo", {"pivot.w_samples": 100}))
    engine.device = torch.device("cuda")
    torch.set_float32_matmul_precision("high")
    try:
        with _Products() as of_statistics:
            assert engine.statistics
        pretended = FakeTensorMode()
        with pretended, _Products() as of_bases:
            w = torch.ones(4, 4, device="cuda")
            bases = Bases(Basis(torch.ones(4, 4, device="cuda"), torch.ones(4, device="cuda")), {})
            bases.pivots_along(w)
            bases.delta({"weight": w}, {"weight": w})
        with pretended, _Products() as of_a_step:
            bases.w_along(w)
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision("highest")
    assert of_statistics.rounded
    assert not any(of_statistics.rounded)
    assert of_bases.rounded == [False, False]
    assert of_a_step.rounded == [True]
