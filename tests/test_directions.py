"""GANSpace and SeFa directions, their unit, and the layers that they move."""

import numpy as np
import pytest
import torch

from pti_core.directions import (
    DirectionError,
    make_direction,
    principal_components,
    style_factors,
    visible_directions,
)
from pti_core.directions.direction import slots_of
from pti_core.generators.stylegan2 import StyleGAN2
from pti_core.perceptual import load_lpips
from pti_core.sampling import w_statistics


@pytest.fixture(scope="module")
def statistics(tiny_generator):
    return w_statistics(tiny_generator, 2000)


@pytest.fixture(scope="module")
def stylegan2():
    torch.manual_seed(1)
    kwargs = {"channel_base": 512, "channel_max": 16}
    return StyleGAN2(24, 0, 24, 64, 3, {"num_layers": 2}, kwargs).eval().requires_grad_(False)


def test_principal_components_against_a_singular_value_decomposition(statistics):
    w = statistics.samples.numpy().astype(np.float64)
    _, values, vectors = np.linalg.svd(w - w.mean(0), full_matrices=False)
    for i, direction in enumerate(principal_components(statistics, 5)):
        assert abs(direction.vector.numpy() @ vectors[i]) == pytest.approx(1, abs=1e-4)
        assert direction.sigma == pytest.approx(values[i] / len(w) ** 0.5, rel=1e-4)
        assert direction.vector[direction.vector.abs().argmax()] > 0
        assert direction.name == f"pca-{i}"


def test_an_edit_moves_all_layers_by_standard_deviations(statistics):
    (direction,) = principal_components(statistics, 1)
    ws = torch.zeros(2, 3, len(direction.vector))
    moved = direction.edit(ws, -2.0)
    torch.testing.assert_close(moved, (-2 * direction.sigma * direction.vector).expand(2, 3, -1))


def test_visible_directions_are_those_that_change_the_image_most(tiny_generator, statistics):
    found = visible_directions(tiny_generator, statistics, load_lpips(), count=2, candidates=6)
    change = {}
    with torch.no_grad():
        mean = statistics.w_avg[None, None].expand(1, tiny_generator.num_ws, -1)
        for d in principal_components(statistics, 6):
            ends = [tiny_generator.synthesis(d.edit(mean, s)) for s in (-2.0, 2.0)]
            change[d.name] = load_lpips()(*ends).item()
    assert [d.name for d in found] == sorted(change, key=change.get, reverse=True)[:2]


@pytest.mark.parametrize("which", ["tiny_generator", "stylegan2"])
def test_styles_are_what_each_slot_of_ws_modulates(which, request):
    """A hook on every affine tells which row of ws it is given."""
    generator = request.getfixturevalue(which)
    ws = torch.randn(1, generator.num_ws, generator.w_dim)
    given = {}

    def remember(module, inputs):
        if inputs[0].shape == ws[:, 0].shape:
            given[id(module.weight)] = [i for i in range(generator.num_ws) if torch.equal(inputs[0], ws[:, i])]

    hooks = [m.register_forward_pre_hook(remember) for m in generator.synthesis.modules() if hasattr(m, "weight_gain")]
    with torch.no_grad():
        generator.synthesis(ws)
    for hook in hooks:
        hook.remove()
    styles = generator.styles()
    assert [given[id(style.affine)] for style in styles] == [[i] for i in range(generator.num_ws)]
    resolutions = [style.resolution for style in styles]
    assert resolutions == sorted(resolutions)
    assert (resolutions[0], resolutions[-1]) == (4, generator.img_resolution)


@pytest.mark.parametrize("which", ["tiny_generator", "stylegan2"])
def test_style_factors_change_the_styles_most(which, request):
    """Of SeFa's directions the first moves the (unit) styles most, and none of many random ones moves them more."""
    generator = request.getfixturevalue(which)
    statistics = w_statistics(generator, 500)
    affines = torch.cat([style.affine for style in generator.styles()])
    affines = affines / affines.norm(dim=1, keepdim=True)
    found = style_factors(generator, statistics, 4)
    moved = [float((affines @ d.vector).square().sum()) for d in found]
    assert moved == sorted(moved, reverse=True)
    random = torch.nn.functional.normalize(torch.randn(500, generator.w_dim), dim=1)
    assert float((affines @ random.T).square().sum(dim=0).max()) < moved[0]
    gram = torch.stack([d.vector for d in found]) @ torch.stack([d.vector for d in found]).T
    torch.testing.assert_close(gram, torch.eye(4), atol=1e-4, rtol=0)


def test_style_factors_of_layers_know_these_layers_only_and_move_them_only(tiny_generator, statistics):
    (direction,) = style_factors(tiny_generator, statistics, 1, "coarse")
    slots = slots_of(tiny_generator, "coarse")
    affines = torch.cat([tiny_generator.styles()[slot].affine for slot in slots])
    affines = (affines / affines.norm(dim=1, keepdim=True)).double()
    top = np.linalg.svd(affines.numpy())[2][0]
    assert abs(direction.vector[0].numpy() @ top) == pytest.approx(1, abs=1e-4)
    still = [i for i in range(tiny_generator.num_ws) if i not in slots]
    assert direction.vector[still].abs().max() == 0
    torch.testing.assert_close(direction.vector[slots].norm(dim=1), torch.ones(len(slots)))


def test_layers_by_word_and_by_number(tiny_generator, stylegan2):
    assert slots_of(tiny_generator, "all") == list(range(8))
    assert slots_of(tiny_generator, "coarse") == [0, 1, 2, 3]  # 4 x 4 and 8 x 8
    assert slots_of(tiny_generator, "middle") == [4, 5, 6, 7]  # 16 x 16, and the head of 32 x 32
    assert slots_of(tiny_generator, "2-4+7") == [2, 3, 4, 7]
    assert slots_of(stylegan2, "fine") == [7, 8, 9]
    with pytest.raises(DirectionError, match=r"layers 'fine': this generator has 8 layers, of 4 to 32 pixels"):
        slots_of(tiny_generator, "fine")
    with pytest.raises(DirectionError, match=r"'6-8'.*0-7 are there"):
        slots_of(tiny_generator, "6-8")
    with pytest.raises(DirectionError, match=r"0-7 are there"):
        slots_of(tiny_generator, "0-100000000000")  # none is counted that is not there
    for text in ("rough", "", "4-", "-4", "coarse+", "1,2"):
        with pytest.raises(DirectionError, match="coarse, middle, fine"):
            slots_of(tiny_generator, text)


def test_any_length_becomes_standard_deviations_of_w(tiny_generator, statistics):
    torch.manual_seed(2)
    vector = torch.randn(24)
    one = make_direction("x", vector, tiny_generator, statistics)
    same = make_direction("x", 7 * vector[None], tiny_generator, statistics)
    torch.testing.assert_close(one.vector, same.vector)
    assert (
        one.sigma
        == pytest.approx(same.sigma)
        == pytest.approx(
            float(((statistics.samples - statistics.w_avg) @ (vector / vector.norm())).std(correction=0)), rel=1e-4
        )
    )
    for shape in ((8, 24), (1, 8, 24)):  # a row a layer, all alike: the same edit
        wide = make_direction("x", vector.expand(8, -1).reshape(shape), tiny_generator, statistics)
        ws = torch.randn(1, 8, 24)
        torch.testing.assert_close(wide.edit(ws, 1.5), one.edit(ws, 1.5))
    coarse = make_direction("x", vector, tiny_generator, statistics, "coarse")
    moved = coarse.edit(torch.zeros(1, 8, 24), 2.0)
    torch.testing.assert_close(moved[0, :4], one.edit(torch.zeros(1, 4, 24), 2.0)[0])
    assert moved[0, 4:].abs().max() == 0


def test_rows_of_different_length_keep_their_proportions(tiny_generator, statistics):
    rows = torch.zeros(8, 24)
    rows[2, 0], rows[3, 1] = 3.0, 1.0
    direction = make_direction("x", rows, tiny_generator, statistics)
    norms = direction.vector.norm(dim=1)
    assert norms[2] / norms[3] == pytest.approx(3)
    assert norms[[2, 3]].square().mean() == pytest.approx(1)


@pytest.mark.parametrize(
    ("vector", "says"),
    [
        (torch.ones(512), r"has the shape \[512\]; this generator takes \[24\], \[1, 24\] or \[8, 24\]"),
        (torch.ones(18, 24), r"\[18, 24\]"),
        (torch.ones(2, 8, 24), r"\[2, 8, 24\]"),
        (torch.tensor(1.0), r"\[\]"),
        (torch.zeros(24), "moves nothing"),
        (torch.full((24,), torch.nan), "NaN"),
    ],
)
def test_a_direction_that_does_not_fit_is_refused_with_its_shape(vector, says, tiny_generator, statistics):
    with pytest.raises(DirectionError, match=says):
        make_direction("smile.npy", vector, tiny_generator, statistics)
