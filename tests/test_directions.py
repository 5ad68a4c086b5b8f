"""GANSpace directions."""

import numpy as np
import pytest
import torch

from pti_core.directions import principal_components, visible_directions
from pti_core.perceptual import load_lpips
from pti_core.sampling import w_statistics


@pytest.fixture(scope="module")
def statistics(tiny_generator):
    return w_statistics(tiny_generator, 2000)


def test_principal_components_against_a_singular_value_decomposition(statistics):
    w = statistics.samples.numpy().astype(np.float64)
    _, values, vectors = np.linalg.svd(w - w.mean(0), full_matrices=False)
    for i, direction in enumerate(principal_components(statistics, 5)):
        assert abs(direction.vector.numpy() @ vectors[i]) == pytest.approx(1, abs=1e-4)
        assert direction.sigma == pytest.approx(values[i] / len(w) ** 0.5, rel=1e-4)
        assert direction.vector[direction.vector.abs().argmax()] > 0
        assert direction.name == f"PC{i + 1}"


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
