"""The generator of rosinality's stylegan2-pytorch in a torch file (`.pt`), read and written.

The two families draw the same function from the same numbers: both store weights about N(0, 1) and apply the gain of
equalised learning rate when they run, the mapping's weights and biases divided by its 0.01 included; both run the
transposed up-convolution with the kernel as stored, so nothing is flipped. What differs is names and leading ones in
shapes; the filters are stored with the gain of 4 of upsampling; and that layout scales a layer's weights before it
demodulates them, which cancels but for the epsilon (about 1e-8 of the result).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import IO, Any

import torch
from torch import Tensor

from pti_core.generators.base import Generator
from pti_core.generators.checkpoints.architecture import MAX_RESOLUTION, build, channel_kwargs
from pti_core.generators.checkpoints.errors import CheckpointError
from pti_core.generators.checkpoints.lazy import LazyTensor
from pti_core.generators.checkpoints.weights import Read, fill
from pti_core.generators.resampling import TAPS, fir_kernel
from pti_core.generators.stylegan2 import StyleGAN2
from pti_core.sampling import w_statistics

KEYS = ("g_ema", "g")  # of such a file, the better one first
UP_GAIN = 4
W_AVG_SAMPLES = 4096  # where a file of a training has no `latent_avg`


def names(resolution: int, num_layers: int) -> dict[str, str]:
    """Names of that layout to names of this one, for all tensors that both have.

    `convs` go by pairs, an upsampling layer and a plain one for each resolution from 8 on.
    """
    found = {f"style.{i + 1}.{part}": f"mapping.fc{i}.{part}" for i in range(num_layers) for part in ("weight", "bias")}
    found["input.input"] = "synthesis.b4.const"
    layers = [("conv1", "b4.conv1")]
    images = [("to_rgb1", "b4.torgb")]
    for i in range(int(math.log2(resolution)) - 2):
        layers += [(f"convs.{2 * i}", f"b{8 << i}.conv0"), (f"convs.{2 * i + 1}", f"b{8 << i}.conv1")]
        images += [(f"to_rgbs.{i}", f"b{8 << i}.torgb")]
    for i, (theirs, ours) in enumerate(layers):
        found[f"{theirs}.conv.weight"] = f"synthesis.{ours}.weight"
        found[f"{theirs}.noise.weight"] = f"synthesis.{ours}.noise_strength"
        found[f"{theirs}.activate.bias"] = f"synthesis.{ours}.bias"
        found[f"noises.noise_{i}"] = f"synthesis.{ours}.noise_const"
    for theirs, ours in images:
        found[f"{theirs}.conv.weight"] = f"synthesis.{ours}.weight"
        found[f"{theirs}.bias"] = f"synthesis.{ours}.bias"
    for theirs, ours in layers + images:
        for part in ("weight", "bias"):
            found[f"{theirs}.conv.modulation.{part}"] = f"synthesis.{ours}.affine.{part}"
    return found


def kernels(resolution: int) -> list[str]:
    """Names of the filters in that layout: a blur for every up-convolution, an upsampling for every added image."""
    steps = range(int(math.log2(resolution)) - 2)
    return [f"convs.{2 * i}.conv.blur.kernel" for i in steps] + [f"to_rgbs.{i}.upsample.kernel" for i in steps]


def their_shape(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape there of a tensor with this shape here: the same numbers with ones around them."""
    if name.startswith("noises."):
        return (1, 1, *shape)
    if name.endswith(".noise.weight"):
        return (1,)
    if re.fullmatch(r"to_rgb(1|s\.\d+)\.bias", name):
        return (1, *shape, 1, 1)
    return (1, *shape) if name == "input.input" or name.endswith(".conv.weight") else shape


def is_rosinality(content: Mapping[Any, Any]) -> bool:
    """Does a torch file hold such a generator?"""
    return any(isinstance(content.get(key), dict) for key in KEYS)


def read_rosinality(content: Mapping[Any, Any], file: IO[bytes]) -> Read:
    """The generator (`g_ema`, else `g`): float32, eval mode, without gradients; and no notes.

    Raises CheckpointError for anything else.
    """
    state = next(content[key] for key in KEYS if isinstance(content.get(key), dict))
    tensors = {str(name): value for name, value in state.items() if isinstance(value, LazyTensor)}
    shapes = {name: value.shape for name, value in tensors.items()}
    generator = build(StyleGAN2.kind, _config(shapes), "the file is damaged")
    assert isinstance(generator, StyleGAN2)
    expected = generator.state_dict()
    theirs = {mine: name for name, mine in names(generator.img_resolution, generator.mapping.num_layers).items()}
    drawn = _drawn_noises(shapes, generator.img_resolution)
    _check(shapes | {name: tuple(value.shape) for name, value in drawn.items()}, generator)
    usual = fir_kernel(TAPS) * UP_GAIN
    if not all(torch.allclose(tensors[name].read(file).float(), usual) for name in kernels(generator.img_resolution)):
        raise CheckpointError("filters other than [1, 3, 3, 1]; such a generator cannot be read")
    latent_avg = content.get("latent_avg")
    if latent_avg is not None and not (
        isinstance(latent_avg, LazyTensor) and math.prod(latent_avg.shape) == generator.w_dim
    ):
        raise CheckpointError(f"`latent_avg` is not {generator.w_dim} numbers; the file is damaged")

    def read(name: str) -> Tensor:
        if name in theirs:
            value = drawn.get(theirs[name])
            return (tensors[theirs[name]].read(file) if value is None else value).reshape(expected[name].shape)
        if name == "mapping.w_avg":
            return torch.zeros(generator.w_dim) if latent_avg is None else latent_avg.read(file).reshape(-1)
        return fir_kernel(TAPS)

    fill(generator, {name: tuple(value.shape) for name, value in expected.items()}, read)
    if latent_avg is None:
        generator.mapping.w_avg.copy_(w_statistics(generator, W_AVG_SAMPLES).w_avg)
    return Read("rosinality", generator)


def _config(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """The architecture, from shapes."""
    steps = sum(bool(re.fullmatch(r"to_rgbs\.\d+\.bias", name)) for name in shapes)
    for name, dims in (("style.1.weight", 2), ("input.input", 4), ("to_rgb1.bias", 4)):
        if len(shapes.get(name, ())) != dims:
            raise CheckpointError(f"it lacks {name}; it is no generator of stylegan2-pytorch, or damaged")
    if not 1 <= steps <= int(math.log2(MAX_RESOLUTION)) - 2:
        raise CheckpointError(f"{steps} layers `to_rgbs`; a generator has 1 to 10, the file is damaged")
    widths = {4: shapes["input.input"][1]}
    for i in range(steps):
        bias = shapes.get(f"convs.{2 * i}.activate.bias", ())
        widths[8 << i] = bias[0] if len(bias) == 1 else 0
    return {
        "z_dim": shapes["style.1.weight"][1],
        "c_dim": 0,
        "w_dim": shapes["style.1.weight"][0],
        "img_resolution": 4 << steps,
        "img_channels": shapes["to_rgb1.bias"][1],
        "mapping_kwargs": {"num_layers": sum(bool(re.fullmatch(r"style\.\d+\.weight", name)) for name in shapes)},
        "synthesis_kwargs": channel_kwargs(widths),
    }


def _drawn_noises(shapes: Mapping[str, tuple[int, ...]], resolution: int) -> dict[str, Tensor]:
    """The layout's first versions kept no noise maps and drew new ones each time: then any fixed ones will do."""
    if any(name.startswith("noises.") for name in shapes):
        return {}
    rng = torch.Generator().manual_seed(0)
    sizes = [4 << ((i + 1) // 2) for i in range(2 * int(math.log2(resolution)) - 3)]
    return {f"noises.noise_{i}": torch.randn(1, 1, size, size, generator=rng) for i, size in enumerate(sizes)}


def _check(shapes: Mapping[str, tuple[int, ...]], generator: StyleGAN2) -> None:
    """Every name and shape of the file, in its own words."""
    state = generator.state_dict()
    ours = names(generator.img_resolution, generator.mapping.num_layers)
    expected = {name: their_shape(name, tuple(state[mine].shape)) for name, mine in ours.items()}
    expected |= dict.fromkeys(kernels(generator.img_resolution), (len(TAPS), len(TAPS)))
    for problem, wrong in (
        ("lacks", [n for n in expected if n not in shapes]),
        ("has the unknown", [n for n in shapes if n not in expected]),
        ("has the wrong shape for", [n for n in expected if n in shapes and shapes[n] != expected[n]]),
    ):
        if wrong:
            raise CheckpointError(f"it {problem} {wrong[0][:80]}; it is no unchanged stylegan2-pytorch generator")


def obstacles(generator: Generator) -> list[str]:
    """Why a generator cannot be written in this layout, in words; an empty list where it can."""
    if not isinstance(generator, StyleGAN2):
        return [f"it is a {generator.kind}, not a StyleGAN2"]
    mapping, synthesis = generator.mapping_kwargs, generator.synthesis_kwargs
    found = {
        "it is conditional": generator.c_dim > 0,
        f"its architecture is {synthesis.get('architecture')!r}, not 'skip'": synthesis.get("architecture", "skip")
        != "skip",
        f"it has {generator.img_channels} image channels, not 3": generator.img_channels != 3,
        "z, w and the mapping's layers differ in size": not generator.z_dim
        == generator.w_dim
        == (mapping.get("layer_features") or generator.w_dim),
        "its mapping has another learning rate than 0.01": mapping.get("lr_multiplier", 0.01) != 0.01,
        "it has layers without noise": synthesis.get("use_noise", True) is not True,
        "its kernels are not 3x3": synthesis.get("kernel_size", 3) != 3,
        "its filter is not [1, 3, 3, 1]": tuple(synthesis.get("resample_filter", TAPS)) != TAPS,
        "its activation is not lrelu": synthesis.get("activation", "lrelu") != "lrelu",
    }
    return [text for text, present in found.items() if present]


def to_rosinality(generator: Generator) -> tuple[dict[str, Any], list[str]]:
    """The content of a `.pt` with this generator, and remarks on what its readers will do differently.

    Raises CheckpointError where the layout cannot express the generator.
    """
    problems = obstacles(generator)
    if problems or not isinstance(generator, StyleGAN2):
        raise CheckpointError(
            f"rosinality's layout cannot hold this generator: {'; '.join(problems)}; write own safetensors instead"
        )
    state = {name: value.detach().cpu() for name, value in generator.state_dict().items()}
    ours = names(generator.img_resolution, generator.mapping.num_layers)
    content = {n: state[mine].reshape(their_shape(n, tuple(state[mine].shape))) for n, mine in ours.items()}
    content |= {name: fir_kernel(TAPS) * UP_GAIN for name in kernels(generator.img_resolution)}
    clamp = generator.synthesis_kwargs.get("conv_clamp")
    rare = "activations beyond it, which are rare, are drawn otherwise"
    remarks = [] if clamp is None else [f"conv_clamp {clamp:g} is left out: {rare}"]
    widths = {block.resolution: len(block.conv1.bias) for block in generator.synthesis.blocks}
    if not any(all(w == min(16384 * m // r, 512) for r, w in widths.items()) for m in (1, 2)):
        remarks.append("the channel counts are not those of channel_multiplier 1 or 2: its reader has to be told them")
    return {"g_ema": content, "latent_avg": state["mapping.w_avg"]}, remarks
