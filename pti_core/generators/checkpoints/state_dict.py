"""Plain state dicts (`torch.save(G.state_dict())`): the architecture is told from their names and shapes.

NVIDIA's names for StyleGAN2, which are this project's, and this project's own for MobileStyleGAN. What no tensor
shows is taken to be as usual: `lrelu`, a learning rate of 0.01 in the mapping, no `conv_clamp`.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import count, takewhile
from typing import IO, Any

import torch

from pti_core.generators.base import Generator
from pti_core.generators.checkpoints.architecture import MAX_RESOLUTION, build, channel_kwargs
from pti_core.generators.checkpoints.errors import CheckpointError
from pti_core.generators.checkpoints.lazy import LazyTensor
from pti_core.generators.checkpoints.weights import Read, fill
from pti_core.generators.mobilestylegan import MobileStyleGAN
from pti_core.generators.resampling import TAPS, fir_kernel
from pti_core.generators.stylegan2 import StyleGAN2

UNSEEN = {"activation": "lrelu", "lr_multiplier": 0.01, "conv_clamp": None}  # arguments that no tensor shows
ADVICE = "it is no unchanged state dict of a StyleGAN2 or MobileStyleGAN, give the .pkl or .safetensors"


def is_state_dict(content: Mapping[Any, Any]) -> bool:
    """Does a torch file hold the tensors of a generator by their names, rather than networks?"""
    return any(isinstance(k, str) and k.startswith("synthesis.") for k in content)


def read_state_dict(content: Mapping[Any, Any], file: IO[bytes]) -> Read:
    """The generator: float32, eval mode, without gradients; and no notes. Raises CheckpointError where it is none."""
    tensors = {str(name): value for name, value in content.items() if isinstance(value, LazyTensor)}
    if len(tensors) != len(content):
        other = next(str(k)[:80] for k, v in content.items() if not isinstance(v, LazyTensor))
        raise CheckpointError(f"a state dict where {other} is no tensor; {ADVICE}")
    if any(name.startswith("synthesis.input.") for name in tensors):
        raise CheckpointError("a state dict of StyleGAN3; only StyleGAN2 can be read (`--cfg stylegan2` there)")
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    if "synthesis.const" in shapes:
        generator = build(MobileStyleGAN.kind, _mobilestylegan(shapes), ADVICE)
    else:
        config = _stylegan2(shapes)
        config["synthesis_kwargs"] |= _taps(tensors, file)
        generator = build(StyleGAN2.kind, config, ADVICE)
    fill(generator, shapes, lambda name: tensors[name].read(file))
    return Read("state-dict", generator)


def unseen(generator: Generator) -> list[str]:
    """What a state dict of this generator leaves out, as sentences for whoever reads it."""
    parts = [generator.config.get(part) or {} for part in ("mapping_kwargs", "synthesis_kwargs")]
    lost = {k: v for part in parts for k, v in part.items() if k in UNSEEN and v != UNSEEN[k]}
    return [
        f"{name} {value} is left out, a state dict has tensors only: its reader has to be told"
        for name, value in lost.items()
    ]


def _stylegan2(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """The constructor's arguments but for the filter, those that are as usual left out."""
    sizes = [4 << i for i in range(MAX_RESOLUTION.bit_length() - 2)]
    resolutions = [r for r in sizes if f"synthesis.b{r}.conv1.weight" in shapes]
    w_dim = _size(shapes, "mapping.w_avg", 1, 0)
    c_dim = _size(shapes, "mapping.embed.weight", 2, 1) if "mapping.embed.weight" in shapes else 0
    embed = _size(shapes, "mapping.embed.weight", 2, 0) if c_dim else 0
    hidden = _size(shapes, "mapping.fc0.weight", 2, 0)
    mapping = {"num_layers": _layers(shapes)}
    mapping |= {"embed_features": embed} if c_dim and embed != w_dim else {}
    mapping |= {"layer_features": hidden} if hidden != w_dim else {}
    kernel = _size(shapes, "synthesis.b4.conv1.weight", 4, 2)
    image = f"synthesis.b{max(resolutions, default=4)}.torgb.bias"
    synthesis: dict[str, Any] = channel_kwargs(
        {r: _size(shapes, f"synthesis.b{r}.conv1.weight", 4, 0) for r in resolutions}
    )
    synthesis |= {"kernel_size": kernel} if kernel != 3 else {}
    synthesis |= {} if "synthesis.b4.conv1.noise_const" in shapes else {"use_noise": False}
    if "synthesis.b8.skip.weight" in shapes:
        synthesis["architecture"] = "resnet"
    elif "synthesis.b4.torgb.weight" not in shapes:
        synthesis["architecture"] = "orig"
    return {
        "z_dim": _size(shapes, "mapping.fc0.weight", 2, 1) - embed,
        "c_dim": c_dim,
        "w_dim": w_dim,
        "img_resolution": max(resolutions),
        "img_channels": _size(shapes, image, 1, 0),
        "mapping_kwargs": mapping,
        "synthesis_kwargs": synthesis,
    }


def _taps(tensors: Mapping[str, LazyTensor], file: IO[bytes]) -> dict[str, list[float]]:
    """The argument `resample_filter`, if it is not the usual one."""
    name = "synthesis.b4.resample_filter"
    shape = tensors[name].shape if name in tensors else ()
    if len(shape) != 2 or shape[0] != shape[1]:
        raise CheckpointError(f"{name} is missing or not square; {ADVICE}")
    kernel = tensors[name].read(file).to(torch.float32)
    usual = fir_kernel(TAPS)
    if kernel.shape == usual.shape and torch.equal(kernel, usual):
        return {}
    return {"resample_filter": kernel.sum(dim=0).tolist()}


def _mobilestylegan(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """The constructor's arguments."""
    blocks = takewhile(lambda r: f"synthesis.b{r}.conv1.pointwise" in shapes, (8 << i for i in range(16)))
    widths = [_size(shapes, f"synthesis.b{r}.conv1.pointwise", 4, 0) for r in blocks]
    return {
        "channels": [_size(shapes, "synthesis.const", 3, 0), *widths],
        "z_dim": _size(shapes, "mapping.fc0.weight", 2, 1),
        "w_dim": _size(shapes, "mapping.w_avg", 1, 0),
        "img_channels": _size(shapes, "synthesis.head.bias", 1, 0) // 4,
        "num_layers": _layers(shapes),
    }


def _layers(shapes: Mapping[str, tuple[int, ...]]) -> int:
    return sum(1 for _ in takewhile(lambda i: f"mapping.fc{i}.weight" in shapes, count()))


def _size(shapes: Mapping[str, tuple[int, ...]], name: str, dims: int, dim: int) -> int:
    """One length of a tensor that every generator of the family has."""
    shape = shapes.get(name)
    if shape is None or len(shape) != dims:
        raise CheckpointError(f"{name} {'is missing' if shape is None else f'has the shape {list(shape)}'}; {ADVICE}")
    return shape[dim]
