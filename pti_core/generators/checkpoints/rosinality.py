"""rosinality's stylegan2-pytorch `.pt`: read with `weights_only=True`, and written.

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
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pti_core.generators.base import Generator
from pti_core.generators.checkpoints.architecture import MAX_RESOLUTION, check_config
from pti_core.generators.checkpoints.errors import CheckpointError
from pti_core.generators.checkpoints.torch_file import load_torch
from pti_core.generators.checkpoints.weights import fill
from pti_core.generators.stylegan2 import StyleGAN2
from pti_core.generators.stylegan2_layers import fir_kernel
from pti_core.sampling import w_statistics

TAPS, UP_GAIN = (1, 3, 3, 1), 4
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


def load_rosinality(path: Path, source: str) -> tuple[StyleGAN2, dict[str, str]]:
    """The generator (`g_ema`, else `g`) of such a file, float32, eval mode, without gradients; and no notes.

    Raises CheckpointError, naming `source`, for anything else.
    """
    content = load_torch(path, source)
    state = next((content[k] for k in ("g_ema", "g") if isinstance(content.get(k), dict)), None)
    if state is None:
        keys = ", ".join(str(k)[:40] for k in list(content)[:5]) or "nothing"
        hint = (
            "a plain state dict says nothing of its architecture" if "synthesis.b4.const" in content else "it is none"
        )
        raise CheckpointError(
            f"{source}: a torch file without a rosinality generator (`g_ema`): it holds {keys}; {hint}, "
            "give the training's .pt or .pkl"
        )
    tensors = {str(name): value for name, value in state.items() if isinstance(value, Tensor)}
    config = _config(tensors, source)
    with torch.device("meta"):
        generator = StyleGAN2(**config)
    resolution = generator.img_resolution
    ours = names(resolution, config["mapping_kwargs"]["num_layers"])
    _add_noises(tensors, resolution)
    _check(tensors, generator, ours, source)
    theirs = {mine: name for name, mine in ours.items()}
    expected = generator.state_dict()
    latent_avg = content.get("latent_avg")

    def read(name: str) -> Tensor:
        if name in theirs:
            return tensors[theirs[name]].reshape(expected[name].shape).clone()
        if name == "mapping.w_avg":
            return torch.zeros(generator.w_dim) if latent_avg is None else latent_avg.reshape(-1).clone()
        return fir_kernel(TAPS)

    shapes = {name: tuple(value.shape) for name, value in expected.items()}
    if latent_avg is not None and not (isinstance(latent_avg, Tensor) and latent_avg.numel() == generator.w_dim):
        raise CheckpointError(f"{source}: `latent_avg` is not {generator.w_dim} numbers; the file is damaged")
    fill(generator, shapes, read, source)
    if latent_avg is None:
        generator.mapping.w_avg.copy_(w_statistics(generator, W_AVG_SAMPLES).w_avg)
    return generator, {}


def _config(tensors: Mapping[str, Tensor], source: str) -> dict[str, Any]:
    """The architecture, from shapes."""
    num_layers = sum(bool(re.fullmatch(r"style\.\d+\.weight", name)) for name in tensors)
    steps = sum(bool(re.fullmatch(r"to_rgbs\.\d+\.bias", name)) for name in tensors)
    for name, dims in (("style.1.weight", 2), ("input.input", 4), ("to_rgb1.bias", 4)):
        if name not in tensors or tensors[name].ndim != dims:
            raise CheckpointError(f"{source}: lacks {name}; it is no generator of stylegan2-pytorch, or damaged")
    if not 1 <= steps <= int(math.log2(MAX_RESOLUTION)) - 2:
        raise CheckpointError(f"{source}: {steps} layers `to_rgbs`; a generator has 1 to 10, the file is damaged")
    resolution = 4 << steps
    widths = {4: tensors["input.input"].shape[1]}
    for i in range(steps):
        bias = tensors.get(f"convs.{2 * i}.activate.bias")
        widths[8 << i] = len(bias) if bias is not None and bias.ndim == 1 else 0
    config = {
        "z_dim": tensors["style.1.weight"].shape[1],
        "c_dim": 0,
        "w_dim": tensors["style.1.weight"].shape[0],
        "img_resolution": resolution,
        "img_channels": tensors["to_rgb1.bias"].shape[1],
        "mapping_kwargs": {"num_layers": num_layers},
        "synthesis_kwargs": _channels(widths, source),
    }
    try:
        check_config("stylegan2", config)
    except ValueError as error:
        raise CheckpointError(
            f"{source}: an architecture that is not possible ({error}); the file is damaged"
        ) from None
    return config


def _channels(widths: Mapping[int, int], source: str) -> dict[str, int]:
    """`channel_base` and `channel_max` that give these widths, by resolution; NVIDIA's usual ones where they do."""
    last = max(widths)
    most = max(widths.values())
    for base in (32768, 16384, widths[last] * last):
        if all(min(base // r, most) == width for r, width in widths.items()):
            return {"channel_base": base, "channel_max": most}
    raise CheckpointError(
        f"{source}: channels {list(widths.values())} from 4 pixels up, which do not halve with every resolution as "
        "channel_multiplier 1 and 2 do; such a generator cannot be read"
    )


def _add_noises(tensors: dict[str, Tensor], resolution: int) -> None:
    """The layout's first versions kept no noise maps and drew new ones each time: then any fixed ones will do."""
    if not any(name.startswith("noises.") for name in tensors):
        rng = torch.Generator().manual_seed(0)
        for i in range(2 * int(math.log2(resolution)) - 3):
            size = 4 << ((i + 1) // 2)
            tensors[f"noises.noise_{i}"] = torch.randn(1, 1, size, size, generator=rng)


def _check(tensors: Mapping[str, Tensor], generator: StyleGAN2, ours: Mapping[str, str], source: str) -> None:
    """Every name and shape of the file, in its own words, and that its filters are the usual ones."""
    expected = {name: their_shape(name, tuple(generator.state_dict()[mine].shape)) for name, mine in ours.items()}
    filters = kernels(generator.img_resolution)
    expected |= dict.fromkeys(filters, (len(TAPS), len(TAPS)))
    for problem, wrong in (
        ("lacks", [n for n in expected if n not in tensors]),
        ("has the unknown", [n for n in tensors if n not in expected]),
        ("has the wrong shape for", [n for n in expected if n in tensors and tuple(tensors[n].shape) != expected[n]]),
    ):
        if wrong:
            raise CheckpointError(
                f"{source}: {problem} {wrong[0][:80]}; it is no unchanged stylegan2-pytorch generator"
            )
    usual = fir_kernel(TAPS) * UP_GAIN
    if not all(torch.allclose(tensors[name].float(), usual) for name in filters):
        raise CheckpointError(f"{source}: filters other than [1, 3, 3, 1]; such a generator cannot be read")


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
    remarks = []
    clamp = generator.synthesis_kwargs.get("conv_clamp")
    if clamp is not None:
        remarks.append(f"conv_clamp {clamp:g} is left out: activations beyond it, which are rare, are drawn otherwise")
    widths = {block.resolution: len(block.conv1.bias) for block in generator.synthesis.blocks}
    if not any(all(w == min(16384 * m // r, 512) for r, w in widths.items()) for m in (1, 2)):
        remarks.append("the channel counts are not those of channel_multiplier 1 or 2: its reader has to be told them")
    return {"g_ema": content, "latent_avg": state["mapping.w_avg"]}, remarks
