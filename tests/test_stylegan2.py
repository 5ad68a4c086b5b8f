"""StyleGAN2 against NVIDIA's outputs and against a slow restatement in float64."""

import io
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from nvidia_files import labels, random_generator
from torch.nn import functional as F

from pti_core.generators.base import Generator
from pti_core.generators.checkpoints import load_generator
from pti_core.generators.resampling import fir, fir_kernel, upsample2d
from pti_core.generators.stylegan2 import StyleGAN2

FIXTURES = Path(__file__).parents[2] / "shared" / "fixtures"
ARCHITECTURES = ["skip", "orig", "resnet"]


@pytest.mark.skipif(not FIXTURES.is_dir(), reason="NVIDIA's outputs are not beside this clone")
@pytest.mark.parametrize("name", ["res32", "res16_resnetarch", "res64_cond"])
def test_matches_nvidias_outputs(name):
    generator = load_generator(str(FIXTURES / f"nvidia_sg2ada_{name}.pkl")).generator
    outputs = {k: torch.from_numpy(v) for k, v in np.load(FIXTURES / f"nvidia_sg2ada_{name}.npz").items()}
    with torch.no_grad():
        ws = generator.mapping(outputs["z"], outputs.get("c"))
        half = generator.mapping(outputs["z"], outputs.get("c"), truncation_psi=0.5)
        found = {
            "ws": ws,
            "ws_psi05": half,
            "image_const": generator.synthesis(ws),
            "image_psi05_none": generator.synthesis(half, noise_mode="none"),
        }
    for key, value in found.items():
        torch.testing.assert_close(value, outputs[key], atol=1e-4, rtol=0)


def slow_upfirdn(x, taps, up, pad_before, pad_after, gain):
    """Zeros inserted, padded, correlated with the flipped filter, one channel at a time."""
    kernel = torch.outer(torch.tensor(taps, dtype=torch.float64), torch.tensor(taps, dtype=torch.float64))
    kernel = (kernel / kernel.sum() * gain).flip(0, 1)
    n, c, h, w = x.shape
    grid = torch.zeros(n, c, h * up, w * up, dtype=x.dtype)
    grid[:, :, ::up, ::up] = x
    grid = F.pad(grid, [pad_before, pad_after, pad_before, pad_after])
    return torch.cat([F.conv2d(grid[:, i : i + 1], kernel[None, None]) for i in range(c)], dim=1)


def slow_synthesis(generator, ws, noise):
    """A convolution with modulated and demodulated weights of its own for every image, as the paper writes it."""
    state = {k: v.double() for k, v in generator.synthesis.state_dict(keep_vars=True).items()}
    taps, architecture = [1, 3, 3, 1], generator.synthesis_kwargs.get("architecture", "skip")
    clamp = generator.synthesis_kwargs.get("conv_clamp")

    def style(name, w):
        weight = state[f"{name}.affine.weight"]
        return weight / math.sqrt(weight.shape[1]) @ w + state[f"{name}.affine.bias"]

    def limit(x, gain=1.0):
        return x if clamp is None else x.clamp(-clamp * gain, clamp * gain)

    def layer(x, name, w, n, up, gain=1.0):
        weight = state[f"{name}.weight"] * style(name, w)[None, :, None, None]
        weight = weight / (weight.square().sum(dim=(1, 2, 3), keepdim=True) + 1e-8).sqrt()
        if up == 2:
            x = torch.nn.functional.conv_transpose2d(x, weight.transpose(0, 1), stride=2)
            x = slow_upfirdn(x, taps, 1, 1, 1, 4.0)
        else:
            x = F.conv2d(x, weight, padding=1)
        x = x + n * state[f"{name}.noise_strength"] + state[f"{name}.bias"][None, :, None, None]
        return limit(F.leaky_relu(x, 0.2) * math.sqrt(2) * gain, gain)

    def torgb(x, name, w):
        weight = state[f"{name}.weight"]
        weight = weight * (style(name, w) / math.sqrt(weight.shape[1]))[None, :, None, None]
        return limit(F.conv2d(x, weight) + state[f"{name}.bias"][None, :, None, None])

    images = []
    for i in range(len(ws)):
        maps = [m[i : i + 1].double() for m in noise]
        slots = iter(ws[i].double())
        image, used = None, 0
        x = state["b4.const"][None]
        w = [next(slots) for _ in range(2)]
        resolution = 4
        while True:
            block = f"b{resolution}"
            if resolution == 4:
                x = layer(x, f"{block}.conv1", w[0], maps[0], 1)
                used = 1
            else:
                gain = math.sqrt(0.5) if architecture == "resnet" else 1.0
                before = x
                x = layer(x, f"{block}.conv0", w[0], maps[used], 2)
                x = layer(x, f"{block}.conv1", w[1], maps[used + 1], 1, gain)
                used += 2
                if architecture == "resnet":
                    skip = state[f"{block}.skip.weight"]
                    y = F.conv2d(slow_upfirdn(before, taps, 2, 2, 1, 4.0), skip / math.sqrt(skip.shape[1]))
                    x = x + y * gain
            if image is not None:
                image = slow_upfirdn(image, taps, 2, 2, 1, 4.0)
            if f"{block}.torgb.weight" in state:
                rgb = torgb(x, f"{block}.torgb", w[-1])
                image = rgb if image is None else image + rgb
            if resolution == generator.img_resolution:
                break
            w = [w[-1], next(slots), next(slots)]
            resolution *= 2
        images.append(image)
    return torch.cat(images)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("clamp", [None, 1.5])
def test_synthesis_against_the_slow_restatement(architecture, clamp):
    generator = random_generator(32, architecture=architecture, conv_clamp=clamp)
    ws = torch.randn(3, generator.num_ws, 20, generator=torch.Generator().manual_seed(1))
    noise = [torch.randn(3, 1, *shape) for shape in generator.noise_shapes]
    with torch.no_grad():
        fast = generator.synthesis(ws, noise=noise)
    torch.testing.assert_close(fast.double(), slow_synthesis(generator, ws, noise), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("of_what", ["weights", "w", "weights and w"])
@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("clamp", [None, 1.5])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_gradients_against_the_slow_restatement(architecture, clamp, count, of_what):
    """Tuning's, the search's and both: each has its own way of scaling, and so has one image."""
    generator = random_generator(32, architecture=architecture, conv_clamp=clamp).double()
    of_w, of_weights = "w" in of_what.split(), "weights" in of_what.split()
    parameters = list(generator.synthesis.requires_grad_(True).parameters()) if of_weights else []
    ws = torch.randn(count, generator.num_ws, 20, dtype=torch.float64, requires_grad=of_w)
    noise = [torch.randn(count, 1, *shape).double().requires_grad_(True) for shape in generator.noise_shapes]
    wanted = [*parameters, *noise, *([ws] if of_w else [])]
    fast, slow = generator.synthesis(ws, noise=noise), slow_synthesis(generator, ws, noise)
    torch.testing.assert_close(fast, slow)
    direction = torch.randn_like(fast)
    expected = torch.autograd.grad(slow, wanted, direction)
    torch.testing.assert_close(torch.autograd.grad(fast, wanted, direction), expected)


def test_styles_of_zero_have_gradients_too():
    generator = random_generator(16).double()
    for layer in generator.synthesis.layers:
        layer.affine.weight[3], layer.affine.bias[3] = 0.1, 0.0
    ws = torch.zeros(1, generator.num_ws, 20, dtype=torch.float64, requires_grad=True)  # the fourth style is zero
    noise = [m[None, None].double() for m in generator.noise_const()]
    fast, slow = generator.synthesis(ws, noise=noise), slow_synthesis(generator, ws, noise)
    torch.testing.assert_close(fast, slow, atol=1e-4, rtol=1e-4)
    found, expected = (torch.autograd.grad(x.square().sum(), ws)[0] for x in (fast, slow))
    torch.testing.assert_close(found, expected, atol=1e-4 * float(expected.abs().max()), rtol=1e-3)


def test_a_second_derivative_for_w_is_refused_or_right():
    generator = random_generator(16).double()
    ws = torch.randn(1, generator.num_ws, 20, dtype=torch.float64, requires_grad=True)
    with pytest.raises(RuntimeError, match="second derivatives of one image"):
        torch.autograd.grad(generator.synthesis(ws).square().sum(), ws, create_graph=True)
    generator.requires_grad_(True)
    weight, name = generator.synthesis.b16.conv0.weight, "b16.conv0.weight"

    def slope(values: torch.Tensor) -> torch.Tensor:
        """How much the images change with w, by weights."""

        def of(w):
            return torch.func.functional_call(generator.synthesis, {name: values}, (w,)).square().sum()

        return torch.func.grad(of)(ws.detach()).square().sum()

    gradient = torch.autograd.grad(generator.synthesis(ws).square().sum(), ws, create_graph=True)[0]
    (expected,) = torch.autograd.grad(gradient.square().sum(), weight)
    torch.testing.assert_close(torch.func.grad(slope)(weight.detach()), expected)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_other_ways_to_derive_and_to_trace():
    generator = random_generator(16, conv_clamp=2.0)
    ws = torch.randn(2, generator.num_ws, 20)

    def loss(w):
        return generator.synthesis(w[None]).square().mean()

    expected = torch.stack([torch.func.grad(loss)(w) for w in ws])
    torch.testing.assert_close(torch.func.vmap(torch.func.grad(loss))(ws), expected)
    torch.testing.assert_close(torch.func.jacfwd(loss)(ws[0]), expected[0], atol=1e-6, rtol=1e-4)
    traced = torch.jit.trace(generator.synthesis, (ws[:1],), check_trace=False)
    torch.jit.save(traced, buffer := io.BytesIO())
    buffer.seek(0)
    torch.testing.assert_close(torch.jit.load(buffer)(ws[1:]), generator.synthesis(ws[1:]), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_generator_of_another_type_draws_in_it(dtype):
    generator = random_generator(16).to(dtype)
    for count in (1, 2):
        assert generator.synthesis(torch.randn(count, generator.num_ws, 20, dtype=dtype)).dtype == dtype


def test_the_filter_of_one_step_has_its_gradient_at_any_padding():
    x, kernel = torch.randn(2, 3, 7, 6, dtype=torch.float64, requires_grad=True), torch.randn(4, 4).double()
    for padding in [(0, 0), (1, 1), (2, 1), (3, 3)]:
        assert torch.autograd.gradcheck(lambda x, p=padding: fir(x, kernel, p, gain=3), x)


def test_upsampling_against_inserted_zeros_and_the_filter():
    x = torch.randn(2, 3, 5, 5, dtype=torch.float64)
    fast = upsample2d(x, fir_kernel([1, 3, 3, 1]))
    torch.testing.assert_close(fast, slow_upfirdn(x, [1, 3, 3, 1], 2, 2, 1, 4.0), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("resolution", [16, 64, 256])
@pytest.mark.parametrize("c_dim", [0, 3])
def test_fulfils_the_protocol_at_any_size(resolution, c_dim):
    generator = random_generator(resolution, c_dim)
    assert isinstance(generator, Generator)
    assert generator.num_ws == 2 * int(math.log2(resolution)) - 2
    assert len(generator.noise_shapes) == generator.num_ws - 1
    with torch.no_grad():
        ws = generator.mapping(torch.randn(2, 12), labels(2, c_dim))
        image = generator.synthesis(ws)
    assert ws.shape == (2, generator.num_ws, 20)
    assert image.shape == (2, 3, resolution, resolution)
    again = StyleGAN2(**generator.config)
    again.load_state_dict(generator.state_dict())
    assert set(generator.tunable()) == {k for k, _ in generator.named_parameters() if k.startswith("synthesis.")}


def test_config_f_at_1024_has_the_published_size():
    with torch.device("meta"):
        generator = StyleGAN2(512, 0, 512, 1024, 3)
    assert generator.num_ws == 18
    assert sum(p.numel() for p in generator.parameters()) == 30_370_060
    assert generator.state_dict()["synthesis.b1024.conv0.weight"].shape == (32, 64, 3, 3)


def test_noise_modes_and_given_maps():
    generator = random_generator(32)
    ws = generator.mapping(torch.randn(2, 12))
    const = generator.synthesis(ws)
    torch.testing.assert_close(const, generator.synthesis(ws))
    given = [m[None, None] for m in generator.noise_const()]
    torch.testing.assert_close(const, generator.synthesis(ws, noise=given))
    assert not torch.allclose(const, generator.synthesis(ws, noise_mode="none"))
    assert not torch.allclose(
        generator.synthesis(ws, noise_mode="random"), generator.synthesis(ws, noise_mode="random")
    )


def test_truncation():
    generator = random_generator(16)
    z = torch.randn(4, 12)
    full, average = generator.mapping(z), generator.mapping.w_avg
    torch.testing.assert_close(generator.mapping(z, truncation_psi=0.3), average + 0.3 * (full - average))
    torch.testing.assert_close(generator.mapping(z, truncation_psi=0.0)[2, 1], average)
    cut = generator.mapping(z, truncation_psi=0.3, truncation_cutoff=2)
    torch.testing.assert_close(cut[:, 2:], full[:, 2:])
    torch.testing.assert_close(cut[:, :2], average + 0.3 * (full[:, :2] - average))


def test_a_batch_draws_what_its_images_draw_alone():
    generator = random_generator(32)
    ws = torch.randn(4, generator.num_ws, 20)
    alone = torch.cat([generator.synthesis(ws[i : i + 1]) for i in range(4)])
    torch.testing.assert_close(generator.synthesis(ws), alone, atol=1e-5, rtol=1e-4)


def test_gradients_reach_w_noise_and_every_tunable_parameter():
    generator = random_generator(16).requires_grad_(True)
    ws = torch.randn(1, generator.num_ws, 20, requires_grad=True)
    noise = [torch.randn(1, 1, *shape, requires_grad=True) for shape in generator.noise_shapes]
    generator.synthesis(ws, noise=noise).square().sum().backward()
    assert (ws.grad.abs().sum(dim=(0, 2)) > 0).all()
    assert all(n.grad.abs().sum() > 0 for n in noise)
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in generator.tunable().values())


def test_bad_input_is_named():
    generator = random_generator(16, 3)
    with pytest.raises(ValueError, match=r"\[1, 4, 20\]"):
        generator.synthesis(torch.zeros(1, 4, 20))
    with pytest.raises(ValueError, match="labels"):
        generator.mapping(torch.zeros(1, 12))
    with pytest.raises(ValueError, match=r"\[N, 12\]"):
        generator.mapping(torch.zeros(1, 13), labels(1, 3))
    with pytest.raises(ValueError, match="power of two"):
        StyleGAN2(4, 0, 4, 48)
    with pytest.raises(ValueError, match="architecture"):
        StyleGAN2(4, 0, 4, 16, synthesis_kwargs={"architecture": "dense"})
