"""Every format read back: the same names, the same weights, the same images."""

import copy
import os
import stat
import sys
import types
from collections import OrderedDict

import numpy as np
import pytest
import torch
from nvidia_files import Persistent, dumps, generator_record, labels, module_record, random_generator
from test_rosinality import square_generator
from torch import nn

from pti_core.generators.checkpoints import BUILT_IN, CheckpointError, load_generator, save_generator
from pti_core.generators.checkpoints.convert import SUFFIXES, describe, format_for, write_generator
from pti_core.generators.stylegan2 import StyleGAN2


def same(one, two, atol=0.0):
    """Two generators have the same state and draw the same."""
    state = two.state_dict()
    assert one.state_dict().keys() == state.keys()
    for name, value in one.state_dict().items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, state[name], atol=atol, rtol=0)
    z, c = torch.randn(2, one.z_dim), labels(2, one.c_dim)
    with torch.no_grad():
        drawn = [g.synthesis(g.mapping(z, c, truncation_psi=0.7)) for g in (one, two)]
    torch.testing.assert_close(*drawn, atol=20 * atol, rtol=0)
    assert not one.training
    assert not any(p.requires_grad for p in one.parameters())


def nvidia(tmp_path, content, protocol=4):
    path = tmp_path / "network-snapshot.pkl"
    path.write_bytes(dumps(content, protocol=protocol))
    return load_generator(str(path))


# --- NVIDIA's pickles --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["skip", "orig", "resnet"])
@pytest.mark.parametrize("c_dim", [0, 3])
@pytest.mark.parametrize("clamp", [None, 256])
@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_every_architecture_of_an_nvidia_pickle(architecture, c_dim, clamp, protocol, tmp_path):
    kwargs = {} if clamp is None else {"conv_clamp": clamp}
    generator = random_generator(16, c_dim, architecture=architecture, **kwargs)
    loaded = nvidia(tmp_path, {"G_ema": generator_record(generator)}, protocol)
    assert (loaded.kind, loaded.format) == ("stylegan2", "pickle")
    assert loaded.generator.synthesis_kwargs.get("conv_clamp") == clamp
    same(loaded.generator, generator)


@pytest.mark.parametrize("key", ["G_ema", "G"])
def test_discriminator_augment_pipe_and_settings_inside_the_pickle(key, tmp_path):
    generator = random_generator(16)
    discriminator = module_record("Discriminator", nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 1)))
    augment = module_record("AugmentPipe", nn.BatchNorm1d(3))
    content = {"G": module_record("Generator", nn.Linear(2, 2)), "D": discriminator, "augment_pipe": augment}
    content[key] = generator_record(generator)
    module = types.ModuleType("dnnlib.util")
    module.EasyDict = type("EasyDict", (dict,), {"__module__": "dnnlib.util"})
    sys.modules |= {"dnnlib": types.ModuleType("dnnlib"), "dnnlib.util": module}
    try:
        content["training_set_kwargs"] = module.EasyDict(path="x.zip", resolution=16, xflip=True)
        same(nvidia(tmp_path, content).generator, generator)
    finally:
        del sys.modules["dnnlib"], sys.modules["dnnlib.util"]


def test_what_old_pickles_hold_besides(tmp_path):
    generator = random_generator(8)
    record = generator_record(generator)
    layer = record.meta["state"]["_modules"]["synthesis"].meta["state"]["_modules"]["b4"].meta["state"]
    layer |= {
        "weight_gain": np.sqrt(np.float64(2)),
        "act_gain": np.float32(1.5),
        "flag": np.bool_(True),
        "n": np.int64(3),
    }
    layer |= {"big": 2**70, "negative": -1, "float": 0.1, "bytes": b"abc", "frozen": frozenset([1]), "text": "ü" * 300}
    shared = ("a", ["b"])
    layer |= {"one": shared, "two": shared, "many": tuple(range(10)), "nested": OrderedDict(a=OrderedDict())}
    same(nvidia(tmp_path, {"G_ema": record}, protocol=4).generator, generator)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_half_and_double_precision_weights_become_single(dtype, tmp_path):
    generator = random_generator(16)
    halved = StyleGAN2(**generator.config)
    halved.load_state_dict(generator.state_dict())
    loaded = nvidia(tmp_path, {"G_ema": generator_record(halved.to(dtype))}).generator
    same(loaded, halved.float().eval())


def test_layers_marked_as_half_precision_and_their_settings(tmp_path):
    generator = random_generator(32, conv_clamp=256)
    record = generator_record(generator)
    synthesis = record.meta["state"]["_modules"]["synthesis"].meta["state"]
    synthesis["_init_kwargs"] |= {
        "num_fp16_res": 4,
        "fp16_channels_last": True,
        "fused_modconv_default": "inference_only",
    }
    mapping = record.meta["state"]["_modules"]["mapping"].meta["state"]
    mapping["_init_kwargs"] |= {"activation": "lrelu", "w_avg_beta": 0.995}
    same(nvidia(tmp_path, {"G_ema": record}).generator, generator)


def test_tensors_that_are_views_of_larger_storages(tmp_path):
    generator = random_generator(8)
    large = torch.zeros(40, 4, 8)
    large[3:19, :, 1:5] = generator.synthesis.b4.const
    record = generator_record(generator)
    block = record.meta["state"]["_modules"]["synthesis"].meta["state"]["_modules"]["b4"].meta["state"]
    block["_parameters"]["const"] = nn.Parameter(large[3:19, :, 1:5])
    loaded = nvidia(tmp_path, {"G_ema": record}).generator
    same(loaded, generator)
    assert loaded.synthesis.b4.const.untyped_storage().nbytes() == 4 * 16 * 16


def test_class_names_of_embedded_classes_are_only_text(tmp_path):
    generator = random_generator(8)
    record = generator_record(generator)
    record.meta["state"]["_modules"]["mapping"].meta["class_name"] = "MyMapping"
    record.meta["state"]["hook"] = Persistent("Anything", {"x": torch.zeros(3)})
    same(nvidia(tmp_path, {"G_ema": record}).generator, generator)


# --- the own format ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("c_dim", [0, 4])
@pytest.mark.parametrize("architecture", ["skip", "orig", "resnet"])
def test_own_format_of_stylegan2(architecture, c_dim, tmp_path):
    generator = random_generator(16, c_dim, architecture=architecture, conv_clamp=3.5, channels=[16, 4, 7])
    path = tmp_path / "own.safetensors"
    save_generator(generator, path, {"licence": "none"})
    loaded = load_generator(str(path))
    assert loaded.generator.config == generator.config
    assert loaded.notes == {"licence": "none"}
    assert loaded.format == "safetensors"
    same(loaded.generator, generator)


def test_own_format_of_the_other_family_and_in_half_precision(tiny_generator, tmp_path):
    path, half = tmp_path / "own.safetensors", tmp_path / "half.safetensors"
    save_generator(tiny_generator, path)
    save_generator(tiny_generator, half, dtype=torch.float16)
    same(load_generator(str(path)).generator, tiny_generator)
    same(load_generator(f"file://{half}").generator, copy.deepcopy(tiny_generator).half().float())
    assert half.stat().st_size < 0.6 * path.stat().st_size


def test_remote_files_and_the_hash(tiny_checkpoint):
    import hashlib

    import fsspec

    with open(tiny_checkpoint, "rb") as file:
        data = file.read()
    fs = fsspec.filesystem("memory")
    fs.pipe("/generators/tiny.safetensors", data)
    loaded = load_generator("memory://generators/tiny.safetensors")
    assert loaded.sha256 == hashlib.sha256(data).hexdigest() == load_generator(tiny_checkpoint).sha256
    same(loaded.generator, load_generator(tiny_checkpoint).generator)
    with pytest.raises(CheckpointError, match="no such file"):
        load_generator("memory://generators/other.safetensors")


def test_the_built_in_generator_by_both_names():
    short, long = load_generator("pocket"), load_generator("pocket-ffhq-128")
    assert short.sha256 == long.sha256
    assert set(BUILT_IN) >= {"pocket-ffhq-128"}


# --- writing and describing --------------------------------------------------------------------------------------


def test_state_dicts_have_nvidias_names(tmp_path):
    generator = random_generator(16)
    write_generator(generator, tmp_path / "state.pth")
    state = torch.load(tmp_path / "state.pth", weights_only=True)
    for name in ("mapping.fc0.weight", "mapping.w_avg", "synthesis.b4.const", "synthesis.b8.conv0.affine.bias"):
        assert name in state
    for name in ("synthesis.b16.torgb.weight", "synthesis.b8.conv1.noise_const", "synthesis.b8.resample_filter"):
        assert name in state
    again = StyleGAN2(**generator.config).eval().requires_grad_(False)
    again.load_state_dict(state)
    same(again, generator)


def test_files_appear_whole_with_the_mode_of_any_new_file(tmp_path, tiny_generator):
    other = random_generator(8)
    for umask, mode in ((0o022, 0o644), (0o077, 0o600), (0o002, 0o664)):
        before = os.umask(umask)
        try:
            save_generator(tiny_generator, tmp_path / f"{umask}.safetensors")
            for format, suffix in SUFFIXES.items():
                write_generator(square_generator(8), tmp_path / f"{umask}{suffix}", format, overwrite=True)
        finally:
            os.umask(before)
        assert {stat.S_IMODE(p.stat().st_mode) for p in tmp_path.glob(f"{umask}.*")} == {mode}
    path = tmp_path / "one.safetensors"
    save_generator(tiny_generator, path)
    other.synthesis.b4.const.data = other.synthesis.b4.const.data.to(torch.complex128)  # safetensors has no such type
    with pytest.raises(KeyError):
        save_generator(other, path)
    same(load_generator(str(path)).generator, tiny_generator)
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


def test_nothing_is_overwritten_or_left_half_written(tmp_path, monkeypatch):
    generator, path = random_generator(8), tmp_path / "out.safetensors"
    path.write_text("precious")
    with pytest.raises(CheckpointError, match="--overwrite"):
        write_generator(generator, path)
    assert path.read_text() == "precious"
    write_generator(generator, path, overwrite=True)
    same(load_generator(str(path)).generator, generator)
    with pytest.raises(CheckpointError, match="folder"):
        write_generator(generator, tmp_path, format="safetensors", overwrite=True)
    with pytest.raises(CheckpointError, match="no folder"):
        write_generator(generator, tmp_path / "no" / "out.pt")
    with pytest.raises(CheckpointError, match=r"\.safetensors"):
        write_generator(generator, tmp_path / "out.bin")
    with pytest.raises(CheckpointError, match="state-dict"):
        write_generator(generator, tmp_path / "out.bin", format="onnx")
    assert [p.name for p in tmp_path.iterdir()] == ["out.safetensors"]
    assert format_for("a/b.PT") == "rosinality"


@pytest.mark.parametrize("c_dim", [0, 3])
def test_description(c_dim, tmp_path):
    generator = random_generator(16, c_dim)
    found = describe(nvidia(tmp_path, {"G_ema": generator_record(generator)}), w_samples=500)
    assert found["kind"] == "stylegan2"
    assert (found["resolution"], found["num_ws"], found["noise_maps"], found["c_dim"]) == (16, 6, 5, c_dim)
    assert found["parameters"] == sum(p.numel() for p in generator.parameters())
    assert found["parameters"] > found["tunable_parameters"] > 0
    assert len(found["sha256"]) == 64
    assert found["w"]["w_std"] > 0
    assert found["w"]["stored_w_avg_distance"] < found["w"]["mean_distance"]
