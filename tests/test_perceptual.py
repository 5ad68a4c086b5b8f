"""LPIPS: the package's own module is the slow truth."""

import hashlib

import pytest
import torch

from pti_core.perceptual import ASSETS, LPIPS, area_downsample, load_lpips, reference_lpips


def pair(size: int, n: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(size)
    a = torch.rand(n, 3, size, size, generator=rng) * 2 - 1
    return a, (a + 0.3 * torch.randn(a.shape, generator=rng)).clamp(-1, 1)


@pytest.mark.parametrize("size", [32, 64, 100, 256])
def test_equals_the_lpips_package(size):
    a, b = pair(size)
    with torch.no_grad():
        torch.testing.assert_close(load_lpips()(a, b), reference_lpips()(a, b).flatten(), atol=1e-5, rtol=0)


def test_the_shipped_convolutions_are_those_that_gave_the_published_distances():
    """Torchvision's AlexNet: 0.7219 and 0.1376 on the LPIPS repository's example pair were measured with this file."""
    content = (ASSETS / "alexnet_features.safetensors").read_bytes()
    assert hashlib.sha256(content).hexdigest() == "9f97fd313f4da83dbe6bbfbe6effca1241de9edfcd7c53386261ed9697286dd9"


def test_target_features_once_give_the_same_gradient_as_both_sides():
    a, b = pair(64)
    reference, lpips = reference_lpips(), load_lpips()
    features = lpips.features(a)
    one, two = b.clone().requires_grad_(True), b.clone().requires_grad_(True)
    lpips.distance(lpips.features(one), features).sum().backward()
    reference(a, two).sum().backward()
    torch.testing.assert_close(one.grad, two.grad, atol=1e-6, rtol=1e-3)


def test_identical_images_have_distance_zero_and_a_finite_gradient():
    a = torch.zeros(1, 3, 64, 64, requires_grad=True)
    distance = load_lpips()(a, torch.zeros(1, 3, 64, 64))
    distance.sum().backward()
    assert distance.item() == 0
    assert torch.isfinite(a.grad).all()


def test_grey_images_are_repeated_and_small_ones_refused():
    a, b = pair(64)
    grey = load_lpips()(a[:, :1], b[:, :1])
    torch.testing.assert_close(grey, load_lpips()(a[:, :1].repeat(1, 3, 1, 1), b[:, :1].repeat(1, 3, 1, 1)))
    with pytest.raises(ValueError, match=r"\[1, 3, 16, 16\]"):
        load_lpips()(torch.zeros(1, 3, 16, 16), torch.zeros(1, 3, 16, 16))


def test_unknown_net_is_refused():
    with pytest.raises(ValueError, match="vgg"):
        LPIPS("vgg")


def test_area_downsample_is_the_mean_of_blocks():
    x = torch.arange(16.0).view(1, 1, 4, 4)
    torch.testing.assert_close(area_downsample(x, 2).flatten(), torch.tensor([2.5, 4.5, 10.5, 12.5]))
    assert area_downsample(x, 4) is x


def test_images_with_channels_last_in_memory_give_the_same_bits():
    """As a generator in half precision draws them; kernels for that layout can go wrong (see `first_pass`)."""
    lpips = load_lpips()
    image, target = torch.rand(2, 1, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    found = []
    for layout in (torch.contiguous_format, torch.channels_last):
        x = image.clone(memory_format=layout).requires_grad_(True)
        distance = lpips(x, target)
        distance.sum().backward()
        found.append((distance.detach(), x.grad))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("size", [32, 128])
@pytest.mark.parametrize("noise", [0.3, 0.03])
def test_half_precision_judges_nearly_the_same_also_near_the_target(size, noise):
    lpips, (target, _) = load_lpips(), pair(size, 1)
    target = torch.nn.functional.avg_pool2d(target, 5, 1, 2)
    image = (target + noise * torch.randn(target.shape, generator=torch.Generator().manual_seed(1))).requires_grad_(
        True
    )
    half, before = lpips.in_half_precision(), {name: value.clone() for name, value in lpips.state_dict().items()}
    found = {}
    for name, net in (("fp32", lpips), ("bf16", half)):
        features = net.features(target)
        assert all(f.dtype == torch.float32 for f in features)
        distance = net.distance(net.features(image), features).sum()
        found[name] = distance.detach(), *torch.autograd.grad(distance, image)
    (exact, gradient), (near, other) = found.values()
    torch.testing.assert_close(near, exact, atol=0, rtol=0.02)
    assert not torch.equal(other, gradient)
    assert torch.cosine_similarity(gradient.flatten(), other.flatten(), dim=0) > 0.99
    assert other.norm() / gradient.norm() == pytest.approx(1, abs=0.05)
    assert half.distance(half.features(target), half.features(target)) == 0
    assert all(torch.equal(value, before[name]) for name, value in lpips.state_dict().items())
