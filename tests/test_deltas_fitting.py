"""Codec `adaptive`: as few bytes as each image's picture allows, and a promise that holds for every image."""

import copy

import numpy as np
import pytest
import torch
from PIL import Image

from pti_core import deltas
from pti_core.deltas import fitting
from pti_core.engine import Engine
from pti_core.generators.checkpoints import load_generator
from pti_core.images import to_float
from pti_core.inversions import Delta, Inversion, Target
from pti_core.machine.out_of_memory import free_memory
from pti_core.metrics import measure
from pti_core.perceptual import load_lpips
from pti_core.pivot import Pivots
from pti_core.presets import configure
from pti_core.reading import DEMO_FOLDER

SHARE = 0.025  # of the generator's float32 bytes, at most
FACES = ("04-clean-bald.png", "12-headband.png")  # the delta of one is small, of the other large


@pytest.fixture(scope="module")
def pocket():
    return load_generator("pocket-ffhq-128").generator


def inverted(generator, *names):
    """Real faces, tuned briefly: inversions and deltas by name."""
    engine = Engine(generator, configure("demo", {"pivot.steps": 8, "tuning.steps": 10, "pivot.w_samples": 500}))
    faces = [torch.from_numpy(to_float(np.asarray(Image.open(DEMO_FOLDER / name)))) for name in names]
    results = list(engine.invert([Target(name, name, face) for name, face in zip(names, faces, strict=True)]))
    inversions = {r.image_id: r for r in results if isinstance(r, Inversion)}
    return inversions, {r.owner: r for r in results if isinstance(r, Delta)}


def assert_kept(measures):
    tuned, back = measures["tuned"], measures["stored"]
    assert back["lpips"] <= tuned["lpips"] + fitting.Promise().lpips + 1e-6
    assert back["psnr"] >= tuned["psnr"] - fitting.Promise().decibels - 1e-4


@pytest.fixture(scope="module")
def stored(pocket):
    return inverted(pocket, *FACES)


@pytest.mark.parametrize("name", FACES)
def test_a_real_delta_takes_a_fortieth_of_the_generator_and_keeps_the_promise(pocket, stored, name):
    inversions, found = stored
    measures = inversions[name].measures
    assert measures["tuned"]["lpips"] < 0.7 * measures["pivot"]["lpips"]
    assert {row.codec for row in found[name].tensors} == {"adaptive"}
    assert_kept(measures)
    whole = 4 * sum(p.numel() for p in pocket.state_dict().values())
    assert sum(len(row.payload) for row in found[name].tensors) + len(inversions[name].noise) <= SHARE * whole


def test_the_promise_holds_however_coarse_the_noise_maps_are_stored(pocket, monkeypatch):
    monkeypatch.setattr(deltas.noise, "STEPS", 0.1)  # nothing is left of them
    inversions, found = inverted(pocket, FACES[1])
    assert {row.codec for row in found[FACES[1]].tensors} == {"adaptive"}
    assert_kept(inversions[FACES[1]].measures)


@pytest.fixture
def case(tiny_generator):
    """A tiny generator and what it would be tuned to: base, tuned, images, pivots, LPIPS."""
    torch.manual_seed(1)
    tuned = copy.deepcopy(tiny_generator)
    with torch.no_grad():
        for p in tuned.tunable().values():
            p.add_(0.02 * torch.randn(p.shape))
    ws = tiny_generator.mapping(torch.randn(3, tiny_generator.z_dim))
    noise = [torch.randn(3, 1, *shape) for shape in tiny_generator.noise_shapes]
    pivots = Pivots(ws[:, :1], noise, tiny_generator.num_ws)
    images = tuned.synthesis(pivots.ws, noise=noise) + 0.1 * torch.randn(3, 3, 32, 32)
    return tiny_generator, tuned, images.clamp(-1, 1), pivots, load_lpips()


def quality(generator, case):
    _, _, images, pivots, lpips = case
    return measure(images, generator.synthesis(pivots.ws, noise=pivots.noise), lpips)


def test_a_group_keeps_the_promise_for_each_of_its_images(case):
    base, tuned, images, pivots, lpips = case
    rows = deltas.fit(base, tuned, images, pivots, lpips)
    assert {row.codec for row in rows} == {"adaptive"}
    back = copy.deepcopy(base)
    deltas.apply(back, deltas.decode(rows))
    for before, after in zip(quality(tuned, case), quality(back, case), strict=True):
        assert after["lpips"] <= before["lpips"] + 0.0005 + 1e-5
        assert after["psnr"] >= before["psnr"] - 0.1 - 1e-2
    strict = deltas.fit(base, tuned, images, pivots, lpips, promise=deltas.Promise(1e-4, 0.01))
    assert bytes_of(strict) > bytes_of(rows)
    assert bytes_of(rows) < 0.5 * bytes_of(deltas.encode(tuned_delta(case), "int8"))


def bytes_of(rows):
    return sum(len(row.payload) for row in rows)


def tuned_delta(case):
    base, tuned = case[0].tunable(), case[1].tunable()
    return {name: tuned[name] - base[name] for name in base}


def test_the_same_bytes_twice_and_nothing_is_changed(case):
    base, tuned, images, pivots, lpips = case
    before = [copy.deepcopy(g.state_dict()) for g in (base, tuned)]
    torch.manual_seed(7)
    first = deltas.fit(base, tuned, images, pivots, lpips)
    torch.manual_seed(8)
    assert deltas.fit(base, tuned, images, pivots, lpips, at_once=3) == first
    for generator, state in zip((base, tuned), before, strict=True):
        assert all(torch.equal(value, state[name]) for name, value in generator.state_dict().items())
        assert not any(p.requires_grad for p in generator.parameters())


def test_a_promise_that_no_step_keeps_ends_at_half_precision(case):
    base, tuned, images, pivots, lpips = case
    rows = deltas.fit(base, tuned, images, pivots, lpips, promise=deltas.Promise(lpips=-1.0))
    assert rows == deltas.encode(tuned_delta(case), "fp16")


def test_other_codecs_do_not_look_at_the_picture(case):
    base, tuned, images, pivots, lpips = case
    rows = deltas.fit(base, tuned, images[:0], pivots[:0], lpips, "int4")
    assert rows == deltas.encode(tuned_delta(case), "int4")


def test_a_generator_that_was_not_tuned_costs_nothing(case):
    base, _, images, pivots, lpips = case
    rows = deltas.fit(base, copy.deepcopy(base), images, pivots, lpips)
    assert bytes_of(rows) == 0
    assert not any(bool(value.any()) for value in deltas.decode(rows).values())


def test_a_delta_that_is_not_finite_is_refused(case):
    base, tuned, images, pivots, lpips = case
    name = list(tuned.tunable())[2]
    with torch.no_grad():
        tuned.tunable()[name].view(-1)[0] = torch.nan
    with pytest.raises(deltas.DeltaError, match=f"{name}.*not finite"):
        deltas.fit(base, tuned, images, pivots, lpips)


def test_importance_is_the_diagonal_of_j_transposed_j(case, monkeypatch):
    """Against the Jacobian of a bias by finite differences."""
    _, tuned, _, pivots, lpips = case
    one = pivots[:1]
    name = next(n for n, p in tuned.tunable().items() if n.endswith("bias") and p.numel() <= 16)
    bias = tuned.tunable()[name]

    rows = []
    for i in range(bias.numel()):
        moved = []
        for sign in (1, -1):
            with torch.no_grad():
                bias[i] += sign * 1e-2
                drawn = tuned.synthesis(one.ws, noise=one.noise)
                moved.append(torch.cat([f.flatten() for f in (*lpips.features(drawn), drawn / drawn.numel() ** 0.5)]))
                bias[i] -= sign * 1e-2
        rows.append(((moved[0] - moved[1]) / 2e-2).square().sum())
    monkeypatch.setattr(fitting, "PROBES", 300)
    found = fitting.importance(tuned, torch.zeros(1, 3, 32, 32), one, lpips, 1024)[name]
    torch.testing.assert_close(found, torch.stack(rows), rtol=0.3, atol=float(max(rows)) * 0.02)


def test_channel_weights_follow_costs_that_are_a_product():
    torch.manual_seed(2)
    rows, columns = 4.0 ** torch.randint(-2, 3, (12,)), 4.0 ** torch.randint(-2, 3, (7,))
    (weights,) = fitting.channel_weights([rows[:, None, None] * columns[:, None].expand(12, 7, 3)])
    found = torch.from_numpy(weights.row_weights())[:, None] * torch.from_numpy(weights.column_weights(1))
    mean = (rows.mean() * columns.mean()).sqrt()
    wanted = mean * ((rows / rows.mean())[:, None] * columns / columns.mean()) ** (fitting._TRUST / 2)
    ratio = found / wanted
    assert ratio.min() > 2**-0.51  # each exponent is rounded to half an octave
    assert ratio.max() < 2**0.51


def test_a_tensor_of_one_channel_is_weighted_by_its_mean_cost():
    weights, *others = fitting.channel_weights([torch.tensor([1.0, 31.0]), torch.tensor(2.0**-8), torch.zeros(3, 1)])
    assert (weights.rows.tolist(), weights.columns.tolist()) == ([4], [0])
    assert others[0].rows.tolist() == [-8]
    assert (len(others[1].rows), len(others[1].columns)) == (3, 1)


def test_what_the_probes_keep_is_given_back_where_memory_is_short(case):
    _, tuned, images, pivots, lpips = case
    fitting.importance(tuned, images, pivots, lpips, 1024)
    assert fitting._probes.cache_info().currsize == 1
    free_memory(torch.device("cpu"))
    assert fitting._probes.cache_info().currsize == 0


@pytest.mark.parametrize("edge", [3e-8, 3e-7, 1.4e-5, 1.6e-5, 4e-4, 9e-3])
def test_the_search_ends_just_below_the_edge(edge):
    tried = []

    def keeps(step):
        tried.append(step)
        return step <= edge

    found = fitting.largest_step(keeps)
    assert edge / 1.1 < found <= edge
    assert len(tried) == len(set(tried)) <= 13


@pytest.mark.parametrize("octaves", [-0.3, -0.1, 0.1, 0.3])
def test_the_search_takes_few_drawings_near_where_it_begins(octaves):
    tried = []
    fitting.largest_step(lambda step: tried.append(step) or step <= fitting.FIRST_STEP * 2**octaves)
    assert len(tried) <= 5


def test_the_search_ends_before_integers_leave_int32():
    tried = []
    assert fitting.largest_step(lambda step: bool(tried.append(step))) is None
    assert 1e-8 < min(tried) < 2e-8


def test_the_search_gives_up_where_nothing_is_kept():
    assert fitting.largest_step(lambda step: False) is None
    assert fitting.largest_step(lambda step: True) >= 1e-3
