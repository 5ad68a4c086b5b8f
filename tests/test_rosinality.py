"""rosinality's `.pt` against a slow restatement of that layout in float64, and round trips with this one."""

import argparse
import json
import math
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from nvidia_files import random_generator
from test_checkpoints_hostile import Call, refused

from pti_core.generators.checkpoints import CheckpointError, load_generator
from pti_core.generators.checkpoints.convert import write_generator
from pti_core.generators.checkpoints.rosinality import kernels, names, their_shape
from pti_core.generators.stylegan2 import StyleGAN2

KEYS = Path(__file__).parents[2] / "shared" / "fixtures" / "rosinality_keys_res256.json"
WIDTHS = {
    8: {4: 12, 8: 8},  # as a channel_multiplier gives, only thinner
    32: {4: 16, 8: 16, 16: 16, 32: 8},
    16: {4: 6, 8: 16, 16: 5},  # as somebody's own layout
}


def their_state(widths, style_dim=20, n_mlp=3):
    """A state dict of the published structure with random values, built from that structure alone."""
    rng = torch.Generator().manual_seed(len(widths))

    def randn(*shape):
        return torch.randn(shape, generator=rng)

    def modulated(name, out, inside, size):
        return {
            f"{name}.weight": randn(1, out, inside, size, size),
            f"{name}.modulation.weight": randn(inside, style_dim),
            f"{name}.modulation.bias": 1 + 0.2 * randn(inside),
        }

    def styled(name, out, inside):
        return modulated(f"{name}.conv", out, inside, 3) | {
            f"{name}.noise.weight": 0.3 * randn(1),
            f"{name}.activate.bias": randn(out),
        }

    def image(name, inside):
        return modulated(f"{name}.conv", 3, inside, 1) | {f"{name}.bias": randn(1, 3, 1, 1)}

    taps = torch.tensor([1.0, 3.0, 3.0, 1.0])
    blur = torch.outer(taps, taps) / taps.sum() ** 2 * 4
    state = {}
    for i in range(1, n_mlp + 1):
        state[f"style.{i}.weight"] = randn(style_dim, style_dim) / 0.01
        state[f"style.{i}.bias"] = randn(style_dim) * 10
    state["input.input"] = randn(1, widths[4], 4, 4)
    state |= styled("conv1", widths[4], widths[4]) | image("to_rgb1", widths[4])
    state["noises.noise_0"] = randn(1, 1, 4, 4)
    for i, resolution in enumerate(r for r in widths if r > 4):
        inside, out = widths[resolution // 2], widths[resolution]
        state |= styled(f"convs.{2 * i}", out, inside) | styled(f"convs.{2 * i + 1}", out, out)
        state |= image(f"to_rgbs.{i}", out)
        state[f"convs.{2 * i}.conv.blur.kernel"] = blur.clone()
        state[f"to_rgbs.{i}.upsample.kernel"] = blur.clone()
        for k in (1, 2):
            state[f"noises.noise_{2 * i + k}"] = randn(1, 1, resolution, resolution)
    return state


def slow_mapping(state, z):
    """Pixel norm, then layers whose weight and bias are both scaled by their learning rate of 0.01."""
    state = {k: v.double() for k, v in state.items()}
    x = z.double()
    x = x / (x.square().mean(dim=1, keepdim=True) + 1e-8).sqrt()
    for i in range(1, 100):
        if f"style.{i}.weight" not in state:
            return x
        weight, bias = state[f"style.{i}.weight"], state[f"style.{i}.bias"]
        x = x @ (weight.T * 0.01 / math.sqrt(weight.shape[1])) + bias * 0.01
        x = torch.where(x > 0, x, 0.2 * x) * math.sqrt(2)
    return x


def correlate(x, kernel):
    """Valid correlation of x `[in, H, W]` with kernels `[out, in, k, k]`, tap by tap."""
    size = kernel.shape[-1]
    h, w = x.shape[1] - size + 1, x.shape[2] - size + 1
    taps = [(i, j) for i in range(size) for j in range(size)]
    return sum(torch.einsum("oc,chw->ohw", kernel[:, :, i, j], x[:, i : i + h, j : j + w]) for i, j in taps)


def pad(x, before, after):
    out = torch.zeros(x.shape[0], x.shape[1] + before + after, x.shape[2] + before + after, dtype=x.dtype)
    out[:, before : before + x.shape[1], before : before + x.shape[2]] = x
    return out


def filtered(x, kernel):
    """Every channel convolved with the filter (its flip correlated)."""
    return torch.cat([correlate(channel[None], kernel.flip(0, 1)[None, None]) for channel in x])


def slow_synthesis(state, latents, noise):
    """One image `[3, R, R]` of latents `[n, style_dim]`, by the published description of each layer."""
    state = {k: v.double() for k, v in state.items()}
    latents = latents.double()

    def weights(name, latent, demodulate):
        raw = state[f"{name}.weight"][0]
        affine = state[f"{name}.modulation.weight"]
        style = affine @ latent / math.sqrt(affine.shape[1]) + state[f"{name}.modulation.bias"]
        scaled = raw / math.sqrt(raw[0].numel()) * style[None, :, None, None]
        return scaled / (scaled.square().sum(dim=(1, 2, 3), keepdim=True) + 1e-8).sqrt() if demodulate else scaled

    def styled(x, name, latent, noise_map):
        kernel = weights(f"{name}.conv", latent, True)
        if f"{name}.conv.blur.kernel" in state:  # every pixel spreads the kernel, two apart; then the filter
            h, w = x.shape[1:]
            spread = torch.zeros(len(kernel), 2 * h + 1, 2 * w + 1, dtype=x.dtype)
            for i in range(3):
                for j in range(3):
                    spread[:, i : i + 2 * h : 2, j : j + 2 * w : 2] += torch.einsum(
                        "oc,chw->ohw", kernel[:, :, i, j], x
                    )
            x = filtered(pad(spread, 1, 1), state[f"{name}.conv.blur.kernel"])
        else:
            x = correlate(pad(x, 1, 1), kernel)
        x = x + noise_map.double() * state[f"{name}.noise.weight"]
        x = x + state[f"{name}.activate.bias"][:, None, None]
        return torch.where(x > 0, x, 0.2 * x) * math.sqrt(2)

    def image(x, name, latent):
        return correlate(x, weights(f"{name}.conv", latent, False)) + state[f"{name}.bias"][0]

    x = styled(state["input.input"][0], "conv1", latents[0], noise[0])
    picture = image(x, "to_rgb1", latents[1])
    for i in range(sum(name.startswith("to_rgbs.") and name.endswith("upsample.kernel") for name in state)):
        x = styled(x, f"convs.{2 * i}", latents[2 * i + 1], noise[2 * i + 1])
        x = styled(x, f"convs.{2 * i + 1}", latents[2 * i + 2], noise[2 * i + 2])
        wide = torch.zeros(3, 2 * picture.shape[1], 2 * picture.shape[2], dtype=x.dtype)
        wide[:, ::2, ::2] = picture
        picture = filtered(pad(wide, 2, 1), state[f"to_rgbs.{i}.upsample.kernel"])
        picture = picture + image(x, f"to_rgbs.{i}", latents[2 * i + 3])
    return picture


def square_generator(resolution=16, **synthesis) -> StyleGAN2:
    """One that the layout can hold: z, w and the mapping's layers of one size; nothing left at its initial value."""
    torch.manual_seed(resolution)
    kwargs = {"channel_base": 256, "channel_max": 16, **synthesis}
    generator = StyleGAN2(20, 0, 20, resolution, 3, {"num_layers": 3}, kwargs).eval().requires_grad_(False)
    for name, value in generator.named_parameters():
        if name.endswith(("bias", "noise_strength")):
            value.add_(torch.randn_like(value) * 0.3)
    generator.mapping.w_avg.normal_()
    return generator


@pytest.mark.parametrize("resolution", WIDTHS)
@pytest.mark.parametrize("legacy", [True, False])
def test_a_file_of_that_structure_draws_what_the_slow_restatement_draws(resolution, legacy, tmp_path):
    state = their_state(WIDTHS[resolution])
    latent_avg = torch.randn(20)
    path = tmp_path / "theirs.pt"
    torch.save({"g_ema": state, "latent_avg": latent_avg}, path, _use_new_zipfile_serialization=not legacy)
    loaded = load_generator(str(path))
    generator = loaded.generator
    assert (loaded.kind, loaded.format) == ("stylegan2", "rosinality")
    torch.testing.assert_close(generator.mapping.w_avg, latent_avg, atol=0, rtol=0)
    z = torch.randn(2, 20)
    ws = generator.mapping(z)
    torch.testing.assert_close(ws[:, 0].double(), slow_mapping(state, z), atol=1e-4, rtol=1e-4)
    ws = torch.randn(2, generator.num_ws, 20)  # each slot its own, so that a shifted one is noticed
    noise = [torch.randn(2, 1, *shape) for shape in generator.noise_shapes]
    for i in range(2):
        drawn = generator.synthesis(ws[i : i + 1], noise=[n[i : i + 1] for n in noise])[0]
        expected = slow_synthesis(state, ws[i], [n[i, 0] for n in noise])
        torch.testing.assert_close(drawn.double(), expected, atol=1e-4, rtol=1e-4)
    own_noise = [state[f"noises.noise_{k}"][0, 0] for k in range(len(noise))]
    drawn = generator.synthesis(ws[:1])[0]
    torch.testing.assert_close(drawn.double(), slow_synthesis(state, ws[0], own_noise), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("resolution", "kwargs"),
    [(8, {}), (16, {}), (64, {}), (32, {"channels": [8, 16, 4, 12]}), (16, {"channels": [1, 2, 3]})],
)
def test_round_trip_is_bit_equal_and_draws_the_same(resolution, kwargs, tmp_path):
    generator = square_generator(resolution, **kwargs)
    path = tmp_path / "ours.pt"
    write_generator(generator, path)
    content = torch.load(path, weights_only=True)
    assert set(content) == {"g_ema", "latent_avg"}
    again = load_generator(str(path)).generator
    assert again.synthesis_kwargs.get("channels") == kwargs.get("channels")
    expected = generator.state_dict()
    assert again.state_dict().keys() == expected.keys()
    for name, value in again.state_dict().items():
        assert torch.equal(value, expected[name]), name
    ws = torch.randn(1, generator.num_ws, 20)
    noise = [torch.randn(1, 1, *shape) for shape in generator.noise_shapes]
    torch.testing.assert_close(again.synthesis(ws, noise=noise), generator.synthesis(ws, noise=noise), atol=0, rtol=0)
    drawn = slow_synthesis(content["g_ema"], ws[0], [n[0, 0] for n in noise])
    torch.testing.assert_close(generator.synthesis(ws, noise=noise)[0].double(), drawn, atol=1e-4, rtol=1e-4)


@pytest.mark.skipif(not KEYS.is_file(), reason="the list of keys is not beside this clone")
def test_names_and_shapes_of_a_256_generator():
    expected = {name: tuple(shape) for name, shape in json.loads(KEYS.read_text())["g_ema"].items()}
    with torch.device("meta"):
        generator = StyleGAN2(512, 0, 512, 256)
    state = generator.state_dict()
    found = {theirs: their_shape(theirs, tuple(state[ours].shape)) for theirs, ours in names(256, 8).items()}
    found |= dict.fromkeys(kernels(256), (4, 4))
    assert found == expected
    assert len(set(names(256, 8).values())) == len(names(256, 8))


def test_nothing_of_the_generator_stays_behind():
    generator = square_generator(32)
    left = set(generator.state_dict()) - set(names(32, 3).values())
    assert {name.rpartition(".")[2] for name in left} == {"resample_filter", "w_avg"}


def test_a_checkpoint_of_a_training_with_its_options_and_without_latent_avg(tmp_path):
    state = their_state(WIDTHS[8])
    path = tmp_path / "000100.pt"
    optimizer = {"state": {0: {"step": 3, "exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 0.1, "params": [0]}]}
    options = argparse.Namespace(size=8, latent=20, path="data")
    content = {"g": their_state(WIDTHS[8]), "d": {"a": torch.zeros(2)}, "g_ema": state, "g_optim": optimizer}
    torch.save({**content, "args": options, "ada_aug_p": 0.1}, path)
    generator = load_generator(str(path)).generator
    z = torch.randn(4000, 20)
    mean = slow_mapping(state, z).mean(0)
    assert (generator.mapping.w_avg - mean).norm() < 0.1 * slow_mapping(state, z).std(0).norm()


def test_the_first_versions_without_noise_maps_and_other_shapes_of_the_mean(tmp_path):
    state = {name: value for name, value in their_state(WIDTHS[8]).items() if not name.startswith("noises.")}
    path = tmp_path / "old.pt"
    torch.save({"g": state, "latent_avg": torch.ones(1, 20)}, path)
    one, two = load_generator(str(path)).generator, load_generator(str(path)).generator
    assert torch.equal(one.mapping.w_avg, torch.ones(20))
    assert all(
        torch.equal(a, b) and 0.4 < a.std() < 1.6 for a, b in zip(one.noise_const(), two.noise_const(), strict=True)
    )


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (lambda s: s.pop("convs.1.conv.weight"), ["lacks convs.1.conv.weight"]),
        (lambda s: s.pop("style.1.weight"), ["style.1.weight"]),
        (lambda s: s.pop("input.input"), ["input.input"]),
        (lambda s: s.pop("to_rgb1.bias"), ["to_rgb1.bias"]),
        (lambda s: s.pop("noises.noise_1"), ["lacks noises.noise_1"]),
        (lambda s: s.update({"surprise": torch.zeros(1)}), ["unknown surprise"]),
        (lambda s: s.update({"conv1.activate.bias": torch.zeros(5)}), ["wrong shape", "conv1.activate.bias"]),
        (lambda s: s.update({"style.2.bias": torch.zeros(20, dtype=torch.int64)}), ["int64"]),
        (lambda s: s["style.2.bias"].fill_(math.nan), ["NaN", "mapping.fc1.bias"]),
        (lambda s: s["conv1.conv.weight"].fill_(math.inf), ["infinite"]),
        (lambda s: s["convs.0.conv.blur.kernel"].fill_(0.25), ["filters"]),
        (lambda s: s.update({"input.input": torch.zeros(1, 7, 4, 4)}), ["wrong shape", "conv1.conv.weight"]),
        (lambda s: s.update({"to_rgb1.bias": torch.zeros(3)}), ["to_rgb1.bias"]),
    ],
)
def test_damaged_files_are_refused(change, parts, tmp_path):
    state = their_state(WIDTHS[8])
    change(state)
    path = tmp_path / "damaged.pt"
    torch.save({"g_ema": state, "latent_avg": torch.zeros(20)}, path)
    refused(path, *parts)


@pytest.mark.parametrize("legacy", [True, False])
@pytest.mark.parametrize(
    ("offset", "size", "stride"),
    [
        (0, (1, 8, 8, 3, 3), (2**40, 2**30, 9, 3, 1)),
        (2**38, (1, 8, 8, 3, 3), (576, 72, 9, 3, 1)),
        (1, (1, 8, 8, 3, 3), (576, 72, 9, 3, 1)),
        (-1, (1, 8, 8, 3, 3), (576, 72, 9, 3, 1)),
        (0, (1, 8, 8, 3, -3), (576, 72, 9, 3, 1)),
        (0, (1, 8, 8, 10**9, 10**9), (0, 0, 0, 0, 0)),
    ],
)
def test_tensors_that_reach_beyond_their_storage(legacy, offset, size, stride, tmp_path):
    state = their_state(WIDTHS[8])
    storage = state["convs.1.conv.weight"]._typed_storage()
    assert state["convs.1.conv.weight"].shape == (1, 8, 8, 3, 3)
    state["convs.1.conv.weight"] = Call(
        torch._utils._rebuild_tensor_v2, storage, offset, size, stride, False, OrderedDict()
    )
    path = tmp_path / "beyond.pt"
    torch.save({"g_ema": state, "latent_avg": torch.zeros(20)}, path, _use_new_zipfile_serialization=not legacy)
    refused(path)


def test_other_torch_files_are_refused(tmp_path):
    path = tmp_path / "other.pt"
    torch.save(torch.zeros(3), path)
    refused(path, "lone tensor")
    torch.save({"model": {"a": torch.zeros(3)}}, path)
    refused(path, "g_ema", "model")
    torch.save({"g_ema": their_state(WIDTHS[8]), "latent_avg": torch.zeros(3)}, path)
    refused(path, "latent_avg")
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    refused(path)


@pytest.mark.parametrize(
    ("generator", "part"),
    [
        (lambda: random_generator(8, c_dim=3), "conditional"),
        (lambda: square_generator(8, architecture="orig"), "orig"),
        (lambda: square_generator(8, architecture="resnet"), "resnet"),
        (lambda: random_generator(8), "differ in size"),
        (lambda: square_generator(8, resample_filter=[1, 2, 1, 0]), "filter"),
        (lambda: StyleGAN2(8, 0, 8, 8, 1), "1 image channels"),
    ],
)
def test_what_the_layout_cannot_express_is_refused_and_writes_nothing(generator, part, tmp_path):
    with pytest.raises(CheckpointError, match=part):
        write_generator(generator(), tmp_path / "out.pt")
    assert list(tmp_path.iterdir()) == []


def test_the_other_family_is_refused(tiny_generator, tmp_path):
    with pytest.raises(CheckpointError, match="mobilestylegan"):
        write_generator(tiny_generator, tmp_path / "out.pt")


def test_what_a_reader_will_do_differently_is_said(tmp_path):
    remarks = write_generator(square_generator(8, conv_clamp=256), tmp_path / "out.pt")
    assert any("conv_clamp 256" in remark for remark in remarks)
    assert any("channel_multiplier" in remark for remark in remarks)
    assert load_generator(str(tmp_path / "out.pt")).generator.synthesis_kwargs.get("conv_clamp") is None
    usual = StyleGAN2(16, 0, 16, 8, 3, {"num_layers": 1}).eval()
    assert write_generator(usual, tmp_path / "usual.pt") == []
    assert load_generator(str(tmp_path / "usual.pt")).generator.synthesis_kwargs["channel_base"] == 32768
