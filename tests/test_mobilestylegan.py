"""The second family: against a slow restatement of its layers, and as a generator behind the protocol."""

import math

import pytest
import torch
from torch.nn import functional as F

from pti_core.generators.base import Generator
from pti_core.generators.mobilestylegan import MobileStyleGAN, inverse_haar


@pytest.fixture(scope="module")
def mobile() -> MobileStyleGAN:
    torch.manual_seed(0)
    generator = MobileStyleGAN([16, 16, 8, 8], z_dim=12, w_dim=20).eval().requires_grad_(False)
    for layer in generator.synthesis.layers:
        layer.noise_strength.fill_(0.3)
    return generator


def slow_inverse_haar(x: torch.Tensor) -> torch.Tensor:
    """Transposed convolutions with the Haar filters, one sub-band at a time."""
    n, c4, h, w = x.shape
    c, low, high = c4 // 4, torch.tensor([1.0, 1.0]).double() / 2**0.5, torch.tensor([1.0, -1.0]).double() / 2**0.5
    out = torch.zeros(n, c, 2 * h, 2 * w, dtype=x.dtype)
    for i in range(c):
        bands = [x[:, i], *(x[:, c + 3 * i + k] for k in range(3))]
        kernels = [torch.outer(low, low), torch.outer(high, low), torch.outer(low, high), torch.outer(high, high)]
        for band, kernel in zip(bands, kernels, strict=True):
            out[:, i] += F.conv_transpose2d(band[:, None], kernel[None, None], stride=2)[:, 0]
    return out


def slow_synthesis(generator: MobileStyleGAN, ws: torch.Tensor, noise: list[torch.Tensor]) -> torch.Tensor:
    """One image at a time, weights modulated instead of inputs, every gain where the paper has it; float64."""
    state = {k: v.double() for k, v in generator.synthesis.state_dict().items()}

    def style(name: str, w: torch.Tensor) -> torch.Tensor:
        weight = state[f"{name}.weight"]
        return weight / math.sqrt(weight.shape[1]) @ w + state[f"{name}.bias"]

    def conv(x: torch.Tensor, name: str, w: torch.Tensor, n: torch.Tensor) -> torch.Tensor:
        s = style(f"{name}.affine", w)
        if f"{name}.weight" in state:
            weight = state[f"{name}.weight"] / math.sqrt(9 * len(s)) * s[None, :, None, None]
            x = F.conv2d(x, weight, padding=1)
        else:
            x = F.conv2d(
                x, state[f"{name}.depthwise"] / math.sqrt(9 * len(s)) * s[:, None, None, None], None, 1, 1, 1, len(s)
            )
            x = F.conv2d(x, state[f"{name}.pointwise"] / math.sqrt(len(s)))
        x = x + n * state[f"{name}.noise_strength"] + state[f"{name}.bias"][None, :, None, None]
        return F.leaky_relu(x, 0.2)

    images = []
    for i in range(len(ws)):
        w, maps = ws[i].double(), [m[i : i + 1].double() for m in noise]
        x = conv(state["const"][None], "conv", w[0], maps[0])
        for b, resolution in enumerate((8, 16, 32)):
            slots = w[1 + 3 * b : 4 + 3 * b]
            x = slow_inverse_haar(x * style(f"b{resolution}.up", slots[0])[None, :, None, None])
            x = conv(x, f"b{resolution}.conv0", slots[1], maps[1 + 2 * b])
            x = conv(x, f"b{resolution}.conv1", slots[2], maps[2 + 2 * b])
        s = style("head.affine", w[-1])
        weight = state["head.weight"] / math.sqrt(len(s)) * s[None, :, None, None]
        images.append(slow_inverse_haar(F.conv2d(x, weight, state["head.bias"])))
    return torch.cat(images)


def test_inverse_haar_against_transposed_convolutions():
    x = torch.randn(2, 12, 3, 5, dtype=torch.float64)
    torch.testing.assert_close(inverse_haar(x), slow_inverse_haar(x))


def test_inverse_haar_keeps_channels_last_and_so_does_its_gradient():
    x = torch.randn(2, 12, 3, 5, dtype=torch.float64).to(memory_format=torch.channels_last).requires_grad_(True)
    y = inverse_haar(x)
    torch.testing.assert_close(y, slow_inverse_haar(x))
    seen = torch.randn_like(y)  # in y's memory format
    (gradient,) = torch.autograd.grad(y, x, seen)
    torch.testing.assert_close(gradient, *torch.autograd.grad(slow_inverse_haar(x), x, seen))
    for t in (y, gradient):
        assert t.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("count", [1, 3])  # one image has its kernels for itself
def test_synthesis_against_the_slow_restatement(mobile, count):
    torch.manual_seed(1)
    ws = torch.randn(count, mobile.num_ws, mobile.w_dim)
    noise = [torch.randn(count, 1, *shape) for shape in mobile.noise_shapes]
    fast = mobile.synthesis(ws, noise=noise)
    torch.testing.assert_close(fast.double(), slow_synthesis(mobile, ws, noise), atol=1e-4, rtol=1e-4)


def test_fulfils_the_protocol(mobile):
    assert isinstance(mobile, Generator)
    assert mobile.img_resolution == 64
    assert mobile.num_ws == 11
    assert mobile.noise_shapes == [(4, 4), (8, 8), (8, 8), (16, 16), (16, 16), (32, 32), (32, 32)]
    again = MobileStyleGAN(**mobile.config)
    again.load_state_dict(mobile.state_dict())
    assert all(name.startswith("synthesis.") for name in mobile.tunable())
    ws = mobile.mapping(torch.randn(2, 12))
    assert ws.shape == (2, 11, 20)
    torch.testing.assert_close(again.eval().synthesis(ws), mobile.synthesis(ws))


def test_noise_modes(mobile):
    ws = mobile.mapping(torch.randn(2, 12))
    const = mobile.synthesis(ws)
    given = mobile.synthesis(ws, noise=[m[None, None] for m in mobile.noise_const()])
    torch.testing.assert_close(const, given)
    assert not torch.allclose(const, mobile.synthesis(ws, noise_mode="none"))
    assert not torch.allclose(mobile.synthesis(ws, noise_mode="random"), mobile.synthesis(ws, noise_mode="random"))


def test_bad_input_is_named(mobile):
    ws = torch.zeros(1, 11, 20)
    maps = [torch.zeros(1, 1, *shape) for shape in mobile.noise_shapes]
    with pytest.raises(ValueError, match=r"\[1, 7, 20\]"):
        mobile.synthesis(ws[:, :7])
    with pytest.raises(ValueError, match="6 noise maps"):
        mobile.synthesis(ws, noise=maps[:-1])
    with pytest.raises(ValueError, match="noise map 0"):
        mobile.synthesis(ws, noise=[torch.zeros(1, 1, 5, 5), *maps[1:]])
    with pytest.raises(ValueError, match="noise_mode"):
        mobile.synthesis(ws, noise_mode="loud")
    with pytest.raises(ValueError, match="multiples of 4"):
        MobileStyleGAN([16, 6])
