"""Several images tuned at once with stacked weights: what one after the other gives."""

from itertools import pairwise

import pytest
import torch
from nvidia_files import random_generator

from pti_core.config import LocalityConfig, PivotConfig, TuningConfig
from pti_core.perceptual import load_lpips
from pti_core.pivot import find_pivots
from pti_core.sampling import w_statistics
from pti_core.stacked import Stack, tune_stack
from pti_core.tuning import tune

SEEDS = [11, 12, 13]
LOCALITY = LocalityConfig(alpha=30.0, interval=2)


def generators(tiny_generator):
    return {"mobilestylegan": tiny_generator, "stylegan2": random_generator(32)}


@pytest.fixture(scope="module", params=["mobilestylegan", "stylegan2"])
def problem(request, tiny_generator):
    """A generator, three of its samples with something that it does not draw, and their pivots."""
    generator = generators(tiny_generator)[request.param]
    with torch.no_grad():
        z = torch.randn(3, generator.z_dim, generator=torch.Generator().manual_seed(4))
        targets = generator.synthesis(generator.mapping(z)).clamp(-1, 1)
    targets[1, :, 8:14, 4:28] = torch.tensor([0.9, -0.9, -0.9]).view(3, 1, 1)
    targets[2, :, 20:26, 4:28] = torch.tensor([-0.9, 0.9, 0.3]).view(3, 1, 1)
    pivots = find_pivots(generator, targets, SEEDS, PivotConfig(steps=12), w_statistics(generator, 500), load_lpips())
    return generator, targets, pivots


def one_by_one(problem, config):
    generator, targets, pivots = problem
    return [
        tune(generator, targets[i : i + 1], pivots[i : i + 1], SEEDS[i : i + 1], config, LOCALITY, load_lpips())
        for i in range(3)
    ]


def drawn(tuned, pivots):
    with torch.no_grad():
        parts = [
            t.generator.synthesis(pivots[i : i + 1].ws, noise=pivots[i : i + 1].noise) for i, t in enumerate(tuned)
        ]
        return torch.cat(parts)


def assert_same(stacked, single, problem):
    generator, _, pivots = problem
    assert [t.steps for t in stacked] == [t.steps for t in single]
    torch.testing.assert_close(drawn(stacked, pivots), drawn(single, pivots), atol=3e-3, rtol=0)
    for a, b in zip(stacked, single, strict=True):
        torch.testing.assert_close(a.lpips, b.lpips, atol=1e-4, rtol=1e-3)
        ours, theirs = (torch.cat([d.ravel() for d in t.delta(generator).values()]) for t in (a, b))
        assert (ours - theirs).norm() <= 0.02 * theirs.norm()  # Adam makes much of the last bit of tiny gradients


def test_a_stack_gives_what_one_after_the_other_gives(problem):
    generator, targets, pivots = problem
    shape = {"lr_rampup": 0.3, "lr_rampdown": 0.5, "beta1": 0.8, "pull": 0.05, "from_resolution": 8}
    config = TuningConfig(steps=8, lr=1e-3, stop_lpips=0.0, **shape)
    seen = []
    tuned = tune_stack(
        generator, targets, pivots, SEEDS, config, LOCALITY, load_lpips(), lambda n, d: seen.append((n, len(d)))
    )
    assert seen == [(n, 3) for n in range(1, 9)]
    assert_same(tuned, one_by_one(problem, config), problem)


@pytest.mark.parametrize("rampdown", [0.0, 0.5])
def test_finished_images_leave_the_stack_and_the_others_go_on_as_before(problem, rampdown):
    generator, targets, pivots = problem
    with torch.no_grad():
        at_pivot = load_lpips()(generator.synthesis(pivots.ws, noise=pivots.noise), targets)
    # Above the first image's LPIPS at the pivot, below the others': it leaves at once, the others when they reach it.
    easiest = int(at_pivot.argmin())
    config = TuningConfig(steps=12, lr=3e-3, stop_lpips=float(at_pivot[easiest]) * 1.05, lr_rampdown=rampdown)
    seen = []
    tuned = tune_stack(generator, targets, pivots, SEEDS, config, LOCALITY, load_lpips(), lambda n, d: seen.append(d))
    single = one_by_one(problem, config)
    assert tuned[easiest].steps == 0
    assert torch.isnan(torch.stack([d[easiest] for d in seen])).all()
    assert seen[0].isnan().sum() == 1  # the others are told of as long as they are in work
    assert all(bool((earlier.isnan() <= later.isnan()).all()) for earlier, later in pairwise(seen))
    assert_same(tuned, single, problem)


def test_a_stack_of_mobilestylegans_draws_in_half_precision_too(tiny_generator):
    generator = tiny_generator.with_precision("half")
    stack = Stack(generator, 3, TuningConfig())
    ws = generator.mapping(torch.randn(3, generator.z_dim, generator=torch.Generator().manual_seed(1)))
    images = stack.draw(ws)
    torch.testing.assert_close(images, generator.synthesis(ws), atol=0.05, rtol=0)
    images.square().sum().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in stack.theta.values())


@pytest.mark.parametrize("architecture", ["skip", "orig", "resnet"])
@pytest.mark.parametrize(("precision", "near"), [("fp16", 5e-3), ("bf16", 4e-2)])  # its rounding
def test_each_place_of_a_stack_in_half_precision_is_what_it_is_alone(architecture, precision, near):
    """Gradients of very different sizes, each with a scale of its own: in fp16 one for all would lose the smallest."""
    generator = random_generator(32, architecture=architecture).with_precision(precision)
    stack, sizes = Stack(generator, 3, TuningConfig()), torch.tensor([1.0, 1e-9, 1e9])
    torch.manual_seed(0)
    with torch.no_grad():
        for p in stack.theta.values():
            p += 0.05 * torch.randn_like(p)
    ws = generator.mapping(torch.randn(3, generator.z_dim))
    images = stack.draw(ws)
    (sizes * images.square().mean(dim=(1, 2, 3))).sum().backward()
    for row, size in enumerate(sizes):
        alone = stack.generator(row).requires_grad_(True)
        image = alone.synthesis(ws[row : row + 1])
        assert (images[row] - image[0]).norm() <= near * image.norm()
        (size * image.square().mean()).backward()
        for name, p in alone.tunable().items():
            if p.grad is not None and p.ndim > 1:
                difference = stack.theta[name].grad[row] - p.grad
                assert difference.norm() <= 2 * near * p.grad.norm(), (name, row)


def test_what_all_places_of_a_stack_share_has_no_gradient_in_half_precision():
    """Each place's is scaled otherwise, so their sum would be none: said, and not given."""
    stack = Stack(random_generator(32).with_precision("fp16"), 2, TuningConfig())
    stack.drawing.generator.synthesis.b32.conv1.bias.requires_grad_(True)
    del stack.theta["synthesis.b32.conv1.bias"]
    with pytest.raises(RuntimeError, match="all places of a stack share"):
        stack.draw(torch.randn(2, stack.base.num_ws, stack.base.w_dim)).square().sum().backward()


def test_a_stack_of_stylegan2s_in_half_precision_is_tuned_as_each_alone():
    generator = random_generator(32).with_precision("half")
    with torch.no_grad():
        ws = generator.mapping(torch.randn(3, generator.z_dim, generator=torch.Generator().manual_seed(4)))
        targets = generator.synthesis(ws).clamp(-1, 1)
    targets[:, :, 8:14, 4:28] = torch.tensor([0.9, -0.9, -0.9]).view(3, 1, 1)
    pivots = find_pivots(generator, targets, SEEDS, PivotConfig(steps=4), w_statistics(generator, 500), load_lpips())
    problem, config = (generator, targets, pivots), TuningConfig(steps=8, lr=1e-3, stop_lpips=0.0)
    stacked, single = tune_stack(*problem, SEEDS, config, LOCALITY, load_lpips()), one_by_one(problem, config)
    for a, b in zip(stacked, single, strict=True):
        torch.testing.assert_close(a.lpips, b.lpips, atol=5e-3, rtol=2e-2)
        assert a.generator.synthesis.precision == "half"


def test_a_step_of_a_stack_leaves_no_gradients_in_memory(problem):
    generator, _, pivots = problem
    stack = Stack(generator, 3, TuningConfig())
    stack.draw(pivots.ws, pivots.noise).square().sum().backward()
    stack.step(torch.tensor([1.0, 0.5, 0.0]))
    assert all(t.grad is None for t in (*stack.theta.values(), *stack.updates.values()))


def test_the_base_generator_stays_as_it_was(problem):
    generator, targets, pivots = problem
    before = {k: v.clone() for k, v in generator.state_dict().items()}
    tuned = tune_stack(generator, targets, pivots, SEEDS, TuningConfig(steps=2), LOCALITY, load_lpips())
    assert all(torch.equal(v, before[k]) for k, v in generator.state_dict().items())
    assert not any(p.requires_grad for t in tuned for p in t.generator.parameters())


def test_a_stack_draws_each_row_with_its_own_weights_and_noise(problem):
    generator, _, pivots = problem
    stack = Stack(generator, 3, TuningConfig())
    with torch.no_grad():
        torch.manual_seed(0)
        for p in stack.theta.values():
            p += 0.05 * torch.randn_like(p)
        images = stack.draw(pivots.ws, pivots.noise)
        own_noise = stack.draw(pivots.ws)
        for row in range(3):
            one, at = stack.generator(row), pivots[row : row + 1]
            torch.testing.assert_close(images[row], one.synthesis(at.ws, noise=at.noise)[0], atol=1e-4, rtol=1e-3)
            torch.testing.assert_close(own_noise[row], one.synthesis(at.ws)[0], atol=1e-4, rtol=1e-3)


def test_one_of_everything_for_each_image(problem):
    generator, targets, pivots = problem
    with pytest.raises(ValueError, match="3 images, 3 pivots, 2 seeds"):
        tune_stack(generator, targets, pivots, SEEDS[:2], TuningConfig(), LOCALITY, load_lpips())
