"""alpha, its unit, and the points w_r."""

import math

import pytest
import torch

from pti_core.locality import distance_in_w, interpolate, radius_of_alpha


def test_published_alphas_as_distances_in_w():
    assert radius_of_alpha(30) == pytest.approx(7.07, abs=0.01)
    assert radius_of_alpha(60) == pytest.approx(14.14, abs=0.01)


@pytest.mark.parametrize("num_ws", [2, 14, 18])
def test_alpha_is_one_distance_in_w_whatever_the_number_of_layers(num_ws):
    torch.manual_seed(0)
    pivot, w_z = torch.randn(3, 1, 16).expand(-1, num_ws, -1), torch.randn(3, 16) * 5
    point = interpolate(pivot, w_z, 30.0)
    for i in range(3):
        w_p, w_r = pivot[i, 0].double(), point.ws[i, 0].double()
        direction = (w_z[i] - w_p) / (w_z[i] - w_p).norm()
        torch.testing.assert_close(w_r, w_p + 30 / math.sqrt(18) * direction, atol=1e-5, rtol=1e-5)
        assert point.t[i].item() == pytest.approx(point.radius[i].item() / (w_z[i] - w_p).norm().item(), rel=1e-5)


def test_with_18_layers_the_norm_of_the_broadcast_tensor_is_the_published_alpha():
    pivot = torch.randn(1, 1, 8).expand(-1, 18, -1)
    point = interpolate(pivot, torch.randn(1, 8) * 3, 30.0)
    assert (point.ws - pivot).norm().item() == pytest.approx(30, rel=1e-4)


def test_the_norm_is_per_sample_never_over_the_batch():
    torch.manual_seed(1)
    pivot, w_z = torch.randn(4, 1, 8).expand(-1, 6, -1), torch.randn(4, 8) * torch.tensor([1.0, 10, 100, 1000])[:, None]
    together = interpolate(pivot, w_z, 15.0).ws
    alone = torch.cat([interpolate(pivot[i : i + 1], w_z[i : i + 1], 15.0).ws for i in range(4)])
    torch.testing.assert_close(together, alone)


def test_w_plus_pivots_lie_at_the_same_distance():
    torch.manual_seed(2)
    pivot = torch.randn(2, 6, 8)
    point = interpolate(pivot, torch.randn(2, 8), 30.0)
    torch.testing.assert_close(
        distance_in_w(point.ws, pivot), torch.full((2,), radius_of_alpha(30)), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("alpha", [0.0, -30.0])
def test_alpha_of_zero_or_below_is_refused(alpha):
    with pytest.raises(ValueError, match="above 0"):
        interpolate(torch.zeros(1, 2, 4), torch.ones(1, 4), alpha)
