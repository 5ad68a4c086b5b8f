"""Plain state dicts in torch files: written, read back bit-equal, and refused where they are not what they seem."""

import math
from collections import OrderedDict

import pytest
import torch
from nvidia_files import random_generator
from test_checkpoints_formats import same
from test_checkpoints_hostile import Call, refused
from test_rosinality import square_generator

from pti_core.generators.checkpoints import load_generator, save_generator
from pti_core.generators.checkpoints.convert import write_generator
from pti_core.generators.stylegan2 import StyleGAN2


def own(mapping=None, **synthesis):
    """A seeded generator of unequal sizes, with these arguments besides."""
    torch.manual_seed(1)
    kwargs = {"channel_base": 256, "channel_max": 16, **synthesis}
    return StyleGAN2(12, 3, 20, 16, 2, {"num_layers": 3, **(mapping or {})}, kwargs).eval().requires_grad_(False)


GENERATORS = {
    **{
        f"{a}, {c} classes": lambda a=a, c=c: random_generator(16, c, architecture=a)
        for a in ("skip", "orig", "resnet")
        for c in (0, 3)
    },
    "sizes of the mapping": lambda: own({"embed_features": 7, "layer_features": 9}),
    "one layer in the mapping": lambda: own({"num_layers": 1}),
    "no noise": lambda: own(use_noise=False),
    "kernels of one pixel": lambda: own(kernel_size=1),
    "another filter": lambda: own(resample_filter=[1, 4, 6, 4, 1]),
    "a filter of the same length": lambda: own(resample_filter=[1, 2, 2, 1]),
    "channels of its own": lambda: own(channels=[16, 8, 12]),
    "usual channels": lambda: StyleGAN2(8, 0, 8, 64, 3, {}, {"channel_base": 16384}).eval().requires_grad_(False),
}


@pytest.mark.parametrize("name", GENERATORS)
@pytest.mark.parametrize("legacy", [False, True])
def test_round_trip_is_bit_equal(name, legacy, tmp_path):
    generator, path = GENERATORS[name](), tmp_path / "state.pth"
    if legacy:
        torch.save(generator.state_dict(), path, _use_new_zipfile_serialization=False)
    else:
        assert write_generator(generator, path) == []
    loaded = load_generator(str(path))
    assert (loaded.kind, loaded.format) == ("stylegan2", "state-dict")
    if not generator.synthesis_kwargs.get("resample_filter"):
        again = StyleGAN2(**loaded.generator.config)  # the architecture alone describes it
        assert {k: v.shape for k, v in again.state_dict().items()} == {
            k: v.shape for k, v in generator.state_dict().items()
        }
    same(loaded.generator, generator)
    save_generator(loaded.generator, tmp_path / "own.safetensors")
    same(load_generator(str(tmp_path / "own.safetensors")).generator, generator)


def test_the_other_family(tiny_generator, tmp_path):
    assert write_generator(tiny_generator, tmp_path / "state.pth") == []
    loaded = load_generator(str(tmp_path / "state.pth"))
    assert loaded.generator.config == tiny_generator.config
    same(loaded.generator, tiny_generator)


def test_parameters_and_half_precision(tmp_path):
    generator = random_generator(16)
    torch.save(OrderedDict(generator.named_parameters()) | dict(generator.named_buffers()), tmp_path / "state.pth")
    same(load_generator(str(tmp_path / "state.pth")).generator, generator)
    torch.save({name: value.half() for name, value in generator.state_dict().items()}, tmp_path / "half.pth")
    same(load_generator(str(tmp_path / "half.pth")).generator, generator.half().float())


def test_what_no_tensor_shows_is_said(tmp_path):
    generator = own({"lr_multiplier": 0.5}, conv_clamp=256, activation="lrelu", num_fp16_res=2)
    remarks = write_generator(generator, tmp_path / "state.pth")
    assert [remark.split(" is left out")[0] for remark in remarks] == ["lr_multiplier 0.5", "conv_clamp 256"]


def test_one_description_whatever_file_it_comes_from(tmp_path):
    for generator in (square_generator(32), square_generator(8, channels=[12, 5])):
        for name in ("a.pt", "a.pth"):
            write_generator(generator, tmp_path / name, overwrite=True)
        theirs, plain = (load_generator(str(tmp_path / name)).generator for name in ("a.pt", "a.pth"))
        assert theirs.config == plain.config
        same(theirs, plain)


CONST = "synthesis.b4.const"


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (lambda s: s.pop(CONST), ["lacks", CONST]),
        (lambda s: s.pop("mapping.w_avg"), ["mapping.w_avg", "missing"]),
        (lambda s: s.pop("mapping.fc0.weight"), ["mapping.fc0.weight", "missing"]),
        (lambda s: s.pop("synthesis.b4.conv1.weight"), ["synthesis.b4.conv1.weight"]),
        (lambda s: s.pop("synthesis.b8.conv1.weight"), ["lacks synthesis.b8.conv1.weight"]),
        (lambda s: s.pop("synthesis.b16.torgb.bias"), ["synthesis.b16.torgb.bias"]),
        (lambda s: s.pop("synthesis.b4.resample_filter"), ["resample_filter"]),
        (lambda s: s.update({"surprise": torch.zeros(1)}), ["unknown surprise"]),
        (lambda s: s.update({CONST: torch.zeros(3, 4, 4)}), ["wrong shape", CONST, "[3, 4, 4]"]),
        (lambda s: s.update({"mapping.w_avg": torch.zeros(2, 10)}), ["mapping.w_avg", "[2, 10]"]),
        (lambda s: s.update({"mapping.w_avg": torch.tensor(1.0)}), ["mapping.w_avg", "[]"]),
        (lambda s: s.update({"synthesis.b4.conv1.weight": torch.zeros(0, 16, 3, 3)}), ["not supported"]),
        (lambda s: s.update({"synthesis.b4.conv1.weight": torch.zeros(16, 16, 5, 5)}), ["kernel_size 5"]),
        (lambda s: s.update({"mapping.w_avg": torch.zeros(20, dtype=torch.int64)}), ["int64"]),
        (lambda s: s[CONST].fill_(math.nan), ["NaN or infinite", CONST]),
        (lambda s: s["synthesis.b4.resample_filter"].fill_(math.inf), ["resample_filter"]),
        (lambda s: s["synthesis.b8.resample_filter"].fill_(math.inf), ["NaN or infinite", "resample_filter"]),
        (lambda s: s.update({"synthesis.b4.resample_filter": torch.zeros(200, 200)}), ["resample_filter"]),
        (lambda s: s.update({"iteration": 3}), ["iteration", "no tensor"]),
        (lambda s: s.update({"synthesis.input.weight": torch.zeros(3)}), ["StyleGAN3"]),
        (lambda s: s.update({f"mapping.fc{i}.weight": torch.zeros(1) for i in range(2, 100)}), ["num_layers 100"]),
        (lambda s: s.update({"synthesis.const": torch.zeros(4, 4, 4)}), ["synthesis.head.bias is missing"]),
        (lambda s: s.update({CONST: torch.zeros(1).expand(16, 4, 4)}), ["storage of 1 values"]),
    ],
)
def test_damaged_state_dicts_are_refused(change, parts, tmp_path):
    state = {name: value.clone() for name, value in random_generator(16).state_dict().items()}
    change(state)
    torch.save(state, tmp_path / "state.pth")
    refused(tmp_path / "state.pth", *parts)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize(
    ("offset", "size", "stride"),
    [
        (1, (16, 4, 4), (16, 4, 1)),
        (2**38, (16, 4, 4), (16, 4, 1)),
        (0, (16, 4, 4), (2**30, 4, 1)),
        (-1, (16, 4, 4), (16, 4, 1)),
    ],
)
def test_tensors_that_reach_beyond_their_storage(legacy, offset, size, stride, tmp_path):
    state = random_generator(16).state_dict()
    storage = state[CONST].clone()._typed_storage()
    state[CONST] = Call(torch._utils._rebuild_tensor_v2, storage, offset, size, stride, False, OrderedDict())
    torch.save(state, tmp_path / "state.pth", _use_new_zipfile_serialization=not legacy)
    refused(tmp_path / "state.pth")


def test_tensors_that_share_a_storage_or_lie_otherwise_in_it(tmp_path):
    generator = random_generator(16)
    state = generator.state_dict()
    both = torch.cat([state["mapping.fc0.bias"], state["mapping.fc1.bias"]])
    state["mapping.fc0.bias"], state["mapping.fc1.bias"] = both[:20], both[20:]
    state["mapping.fc1.weight"] = state["mapping.fc1.weight"].T.contiguous().T
    for legacy in (False, True):
        torch.save(state, tmp_path / "state.pth", _use_new_zipfile_serialization=not legacy)
        loaded = load_generator(str(tmp_path / "state.pth")).generator
        same(loaded, generator)
        assert loaded.mapping.fc1.weight.is_contiguous()


def test_other_dicts_of_tensors(tmp_path):
    path = tmp_path / "state.pth"
    torch.save({"conv.weight": torch.zeros(3)}, path)
    refused(path, "without a generator", "conv.weight")
    torch.save({"synthesis.weight": torch.zeros(3)}, path)
    refused(path, "mapping.w_avg", "state dict")
    torch.save({}, path)
    refused(path, "it holds nothing")
