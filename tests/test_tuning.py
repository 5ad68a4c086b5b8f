"""Pivotal tuning and its locality regularisation."""

import copy

import pytest
import torch

from pti_core.config import LocalityConfig, MeasureConfig, PivotConfig, TuningConfig
from pti_core.locality import interpolate
from pti_core.measure import measure_locality
from pti_core.perceptual import load_lpips
from pti_core.pivot import find_pivots
from pti_core.sampling import ImageRandom, sample_w, w_statistics
from pti_core.tuning import locality_weight, tune

OFF = LocalityConfig(enabled=False)


@pytest.fixture(scope="module")
def problem(tiny_generator):
    """Four samples with a bar that the generator does not draw, and their pivots."""
    statistics = w_statistics(tiny_generator, 1000)
    with torch.no_grad():
        z = torch.randn(4, tiny_generator.z_dim, generator=torch.Generator().manual_seed(9))
        targets = tiny_generator.synthesis(tiny_generator.mapping(z)).clamp(-1, 1)
    targets[:, :, 10:16, 4:28] = torch.tensor([0.9, -0.9, -0.9]).view(1, 3, 1, 1)
    pivots = find_pivots(tiny_generator, targets, range(4), PivotConfig(steps=30), statistics, load_lpips())
    return targets, pivots


def run(generator, problem, index=slice(0, 1), locality=OFF, at_once=None, **config):
    targets, pivots = problem
    config = TuningConfig(**({"steps": 30, "lr": 2e-3, "stop_lpips": 0.0} | config))
    seeds = list(range(4))[index]
    return tune(generator, targets[index], pivots[index], seeds, config, locality, load_lpips(), at_once=at_once)


def test_draws_the_image_at_the_pivot_and_leaves_the_base_alone(tiny_generator, problem):
    before = {k: v.clone() for k, v in tiny_generator.state_dict().items()}
    seen = []
    targets, pivots = problem
    config = TuningConfig(steps=120, lr=2e-3, stop_lpips=0.0)
    step = lambda n, d: seen.append(d.item())  # noqa: E731
    tuned = tune(tiny_generator, targets[:1], pivots[:1], [0], config, OFF, load_lpips(), step)
    assert seen[-1] < 0.35 * seen[0]
    assert tuned.steps == 120
    assert all(torch.equal(v, before[k]) for k, v in tiny_generator.state_dict().items())
    changed = tuned.delta(tiny_generator)
    assert changed.keys() == tiny_generator.tunable().keys()
    assert any(d.abs().max() > 0 for d in changed.values())
    mapping = tuned.generator.mapping.state_dict()
    assert all(torch.equal(v, before[f"mapping.{k}"]) for k, v in mapping.items())
    assert all(p.grad is None for p in tuned.generator.parameters())


def test_stops_early_and_returns_the_generator_that_reached_the_threshold(tiny_generator, problem):
    tuned = run(tiny_generator, problem, steps=200, stop_lpips=0.1)
    assert tuned.steps < 200
    assert all(p.grad is None for p in tuned.generator.parameters())  # as large as the weights
    targets, pivots = problem
    with torch.no_grad():
        images = tuned.generator.synthesis(pivots[:1].ws, noise=pivots[:1].noise)
        assert load_lpips()(images, targets[:1]).item() <= 0.1


def test_a_threshold_that_holds_at_once_changes_nothing(tiny_generator, problem):
    tuned = run(tiny_generator, problem, stop_lpips=10.0)
    assert tuned.steps == 0
    assert all(d.abs().max() == 0 for d in tuned.delta(tiny_generator).values())


def test_one_step_is_the_sum_of_the_papers_losses(tiny_generator, problem):
    """Gradients of one step against equations 2, 3 and 5 written out."""
    targets, pivots = problem
    locality = LocalityConfig(weight=0.1, alpha=30.0, mse_weight=0.7)
    tuned = run(tiny_generator, problem, steps=1, lr=1.0, mse_weight=0.5, locality=locality)
    new = copy.deepcopy(tiny_generator)
    for p in new.tunable().values():
        p.requires_grad_(True)
    lpips, ws = load_lpips(), pivots[:1].ws
    x, x_p = targets[:1], new.synthesis(ws, noise=pivots[:1].noise)
    ws_r = interpolate(ws, sample_w(tiny_generator, ImageRandom([0])), 30.0).ws
    old_r, new_r = tiny_generator.synthesis(ws_r).detach(), new.synthesis(ws_r)
    regularisation = lpips(old_r, new_r) + 0.7 * (old_r - new_r).square().mean()
    (lpips(x, x_p) + 0.5 * (x - x_p).square().mean() + 0.1 * regularisation).sum().backward()
    for name, delta in tuned.delta(tiny_generator).items():
        gradient = new.tunable()[name].grad
        clear = gradient.abs() > 1e-6  # the first step of Adam is -lr * sign(gradient)
        torch.testing.assert_close(delta[clear], -gradient[clear].sign(), atol=0.02, rtol=0)


def test_locality_keeps_the_neighbourhood_on_several_images_paired(tiny_generator, problem):
    """Old against new generator at w_r and w_z: lower with the regulariser, image by image."""
    lpips, drift, fit = load_lpips(), {}, {}
    _, pivots = problem
    for name, locality in {"off": OFF, "on": LocalityConfig(weight=1.0, alpha=30.0)}.items():
        drift[name], fit[name] = [], []
        for i in range(4):
            tuned = run(tiny_generator, problem, slice(i, i + 1), locality, steps=40)
            measure = MeasureConfig(alphas=(15.0, 30.0), z_samples=3)
            rows = measure_locality(tiny_generator, tuned.generator, pivots[i : i + 1].ws, str(i), measure, lpips)
            drift[name].append(sum(row.lpips for row in rows) / len(rows))
            fit[name].append(tuned.lpips.item())
    assert all(on < off for on, off in zip(drift["on"], drift["off"], strict=True)), drift
    assert max(fit["on"]) < 0.3, fit


def test_regularising_at_every_nth_step_uses_n_times_the_weight(tiny_generator, problem):
    third = LocalityConfig(weight=10.0, interval=3)
    assert locality_weight(third) == 3 * locality_weight(LocalityConfig(weight=10.0))
    # At the end of each interval, since at the first step both generators are the same.
    for steps, same in ((2, True), (3, False)):
        with_term, without = (run(tiny_generator, problem, steps=steps, locality=x) for x in (third, OFF))
        pairs = zip(with_term.delta(tiny_generator).values(), without.delta(tiny_generator).values(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs) == same


def test_one_generator_for_a_group_draws_all_of_its_images(tiny_generator, problem):
    targets, pivots = problem
    shared = run(tiny_generator, problem, slice(0, 3), steps=80)
    with torch.no_grad():
        lpips = load_lpips()
        before = lpips(tiny_generator.synthesis(pivots[:3].ws, noise=pivots[:3].noise), targets[:3])
        after = lpips(shared.generator.synthesis(pivots[:3].ws, noise=pivots[:3].noise), targets[:3])
    assert (after < 0.6 * before).all(), (before, after)


def test_locality_rows_at_w_r_and_w_z(tiny_generator, problem):
    _, pivots = problem
    config = MeasureConfig(alphas=(10.0, 20.0), z_samples=2)
    rows = measure_locality(tiny_generator, tiny_generator, pivots[:1].ws, "a", config, load_lpips())
    assert [(r.where, r.alpha) for r in rows] == 2 * [("interpolated", 10.0), ("interpolated", 20.0), ("wz", None)]
    assert len({r.seed for r in rows}) == 2
    assert all(r.lpips == 0 and r.mse == 0 for r in rows)  # the same generator twice
    assert rows[2].t == 1
    assert rows[0].t == pytest.approx(rows[0].radius / rows[2].radius, rel=1e-5)


def test_images_pivots_and_seeds_have_to_be_one_each(tiny_generator, problem):
    targets, pivots = problem
    with pytest.raises(ValueError, match="2 images, 1 pivots, 1 seeds"):
        tune(tiny_generator, targets[:2], pivots[:1], [0], TuningConfig(), OFF, load_lpips())


def test_images_drawn_one_at_a_time_give_the_same_shared_generator(tiny_generator, problem):
    together, one_by_one = (
        run(tiny_generator, problem, slice(0, 3), LocalityConfig(), steps=4, at_once=n) for n in (None, 1)
    )
    a, b = (torch.cat([d.flatten() for d in t.delta(tiny_generator).values()]) for t in (together, one_by_one))
    assert torch.corrcoef(torch.stack([a, b]))[0, 1] > 0.99  # signs of tiny gradients differ, which Adam magnifies
    torch.testing.assert_close(together.lpips, one_by_one.lpips, atol=1e-4, rtol=1e-3)


def test_the_pull_goes_back_to_the_old_weights_by_a_share_of_the_way(tiny_generator, problem):
    """Two steps written out: Adam's step, then the lerp, less as the learning rate falls."""
    plain = run(tiny_generator, problem, steps=1, lr=1e-2).delta(tiny_generator)
    pulled = run(tiny_generator, problem, steps=1, lr=1e-2, pull=0.25).delta(tiny_generator)
    for name, delta in plain.items():
        torch.testing.assert_close(pulled[name], 0.75 * delta, atol=1e-6, rtol=1e-4)


def test_the_pull_lowers_the_drift_at_nearly_no_cost_to_the_image(tiny_generator, problem):
    _, pivots = problem
    near = MeasureConfig(z_samples=4, alphas=(30.0,))

    def drift(tuned, i):
        rows = measure_locality(tiny_generator, tuned.generator, pivots[i : i + 1].ws, f"{i}", near, load_lpips())
        return sum(row.lpips for row in rows) / len(rows)

    lower = 0
    for i in range(4):
        free = run(tiny_generator, problem, slice(i, i + 1), steps=40, lr=4e-3, lr_rampdown=0.6)
        held = run(tiny_generator, problem, slice(i, i + 1), steps=40, lr=4e-3, lr_rampdown=0.6, pull=0.03)
        assert held.lpips.item() < free.lpips.item() + 0.02
        lower += drift(held, i) < drift(free, i)
    assert lower == 4


def test_layers_below_a_resolution_stay_as_they_are(tiny_generator, problem):
    delta = run(tiny_generator, problem, steps=3, from_resolution=8, pull=0.1).delta(tiny_generator)
    pixels = tiny_generator.tunable_resolutions()
    assert delta.keys() == pixels.keys()
    assert min(pixels.values()) == 4
    for name, change in delta.items():
        assert (change.abs().max() > 0) == (pixels[name] >= 8), name


def test_a_resolution_above_all_layers_is_told(tiny_generator, problem):
    with pytest.raises(ValueError, match=r"tuning\.from_resolution 4096: at most \d+, where this generator's layers"):
        run(tiny_generator, problem, from_resolution=4096)
