"""The constructor arguments that a file asks for, held against what is possible before anything is built."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from pti_core.generators.base import Generator
from pti_core.generators.checkpoints.errors import CheckpointError, reason
from pti_core.generators.mobilestylegan import MobileStyleGAN
from pti_core.generators.stylegan2 import StyleGAN2

FAMILIES: dict[str, type[nn.Module]] = {family.kind: family for family in (StyleGAN2, MobileStyleGAN)}
"""The generators that a file can hold, by `kind`."""
MAX_RESOLUTION, MAX_WIDTH, MAX_LAYERS, MAX_TAPS = 4096, 16384, 64, 16
MAX_CHANNEL_BASE = 2**24
MAPPING = ("num_layers", "embed_features", "layer_features", "lr_multiplier")
SYNTHESIS = (
    "channel_base",
    "channel_max",
    "channels",
    "num_fp16_res",
    "architecture",
    "kernel_size",
    "use_noise",
    "activation",
    "resample_filter",
    "conv_clamp",
)


def build(kind: str, config: Any, advice: str) -> Generator:
    """An empty generator, on the meta device, of the architecture that a file asks for.

    Raises CheckpointError, which ends in `advice`, where there can be none.
    """
    try:
        check_config(kind, config)
        with torch.device("meta"):
            return FAMILIES[kind](**config)  # type: ignore[return-value]
    except (TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"an architecture that is not supported ({reason(error)}); {advice}") from None


def channel_kwargs(widths: Mapping[int, int]) -> dict[str, Any]:
    """The arguments of `StyleGAN2` for these channels by resolution, from 4 up: NVIDIA's formula where it gives them.

    Its usual `channel_base` are tried first, so that one generator has one description whatever file it comes from.
    """
    last, most = max(widths), max(widths.values())
    for base in (32768, 16384, widths[last] * last):
        if all(min(base // r, most) == width for r, width in widths.items()):
            return {"channel_base": base, "channel_max": most}
    return {"channels": [widths[r] for r in sorted(widths)]}


def check_config(kind: str, config: Any) -> None:
    """Hold the arguments of a generator of this kind against their types and ranges.

    Raises ValueError with one sentence for an absurd number, a wrong type or an unknown name: a file must not be able
    to make a constructor loop for hours or ask for terabytes.
    """
    checks = {"stylegan2": _check_stylegan2, "mobilestylegan": _check_mobilestylegan}
    if not isinstance(config, Mapping):
        raise ValueError(f"an architecture that is a {type(config).__name__}, not a table of arguments")
    if kind in checks:
        checks[kind](config)


def _check_stylegan2(config: Mapping[str, Any]) -> None:
    sizes = ("z_dim", "c_dim", "w_dim", "img_resolution", "img_channels")
    _known(config, (*sizes, "mapping_kwargs", "synthesis_kwargs"))
    for name in ("z_dim", "w_dim", "img_channels"):
        _integer(config, name, 1, MAX_WIDTH)
    _integer(config, "c_dim", 0, MAX_WIDTH)
    resolution = _integer(config, "img_resolution", 8, MAX_RESOLUTION)
    if resolution & (resolution - 1):
        raise ValueError(f"img_resolution {resolution}: a power of two expected")
    mapping, synthesis = config.get("mapping_kwargs") or {}, config.get("synthesis_kwargs") or {}
    for name, part in (("mapping_kwargs", mapping), ("synthesis_kwargs", synthesis)):
        if not isinstance(part, Mapping):
            raise ValueError(f"{name} {_show(part)}: a table of arguments expected")
    _known(mapping, MAPPING)
    _integer(mapping, "num_layers", 1, MAX_LAYERS, optional=True)
    for name in ("embed_features", "layer_features"):
        _integer(mapping, name, 1, MAX_WIDTH, optional=True)
    _number(mapping, "lr_multiplier", 1e-6, 1e3)
    _known(synthesis, SYNTHESIS)
    base = _integer(synthesis, "channel_base", 1, MAX_CHANNEL_BASE, optional=True) or 32768
    _integer(synthesis, "channel_max", 1, MAX_WIDTH, optional=True)
    _integer(synthesis, "num_fp16_res", 0, MAX_LAYERS, optional=True)
    channels, levels = synthesis.get("channels"), int(math.log2(resolution)) - 1
    if channels is None and base < resolution:
        raise ValueError(f"channel_base {base}: less than one channel at {resolution} pixels")
    if channels is not None and not (isinstance(channels, list) and len(channels) == levels):
        raise ValueError(f"channels {_show(channels)}: a list of {levels} numbers expected at {resolution} pixels")
    for count in channels or ():
        if not _is_integer(count) or not 1 <= count <= MAX_WIDTH:
            raise ValueError(f"channels {_show(count)}: a whole number from 1 to {MAX_WIDTH} expected")
    _number(synthesis, "conv_clamp", 1e-6, math.inf)
    if synthesis.get("kernel_size", 3) not in (1, 3):
        raise ValueError(f"kernel_size {_show(synthesis['kernel_size'])}: 1 or 3 expected")
    if not isinstance(synthesis.get("use_noise", True), bool):
        raise ValueError(f"use_noise {_show(synthesis['use_noise'])}: true or false expected")
    for name, known in (("architecture", ("skip", "orig", "resnet")), ("activation", ("lrelu", "linear"))):
        if name in synthesis and synthesis[name] not in known:
            raise ValueError(f"{name} {_show(synthesis[name])}: one of {', '.join(known)} expected")
    taps = synthesis.get("resample_filter", (1, 3, 3, 1))
    if not isinstance(taps, list | tuple) or not 2 <= len(taps) <= MAX_TAPS or not all(map(_is_number, taps)):
        raise ValueError(f"resample_filter {_show(taps)}: a list of 2 to {MAX_TAPS} numbers expected")


def _check_mobilestylegan(config: Mapping[str, Any]) -> None:
    _known(config, ("channels", "z_dim", "w_dim", "img_channels", "num_layers"))
    channels = config.get("channels")
    most = int(math.log2(MAX_RESOLUTION)) - 2
    if not isinstance(channels, list) or not 2 <= len(channels) <= most:
        raise ValueError(f"channels {_show(channels)}: a list of 2 to {most} numbers expected")
    for count in channels:
        if not _is_integer(count) or not 4 <= count <= MAX_WIDTH or count % 4:
            raise ValueError(f"channels {_show(count)}: a multiple of 4 up to {MAX_WIDTH} expected")
    for name in ("z_dim", "w_dim", "img_channels"):
        _integer(config, name, 1, MAX_WIDTH, optional=True)
    _integer(config, "num_layers", 1, MAX_LAYERS, optional=True)


def _known(config: Mapping[str, Any], names: tuple[str, ...]) -> None:
    unknown = [name for name in config if name not in names]
    if unknown:
        raise ValueError(f"the unknown argument {_show(unknown[0])}")


def _integer(config: Mapping[str, Any], name: str, low: int, high: int, optional: bool = False) -> int:
    value = config.get(name)
    if optional and value is None:
        return 0
    if not _is_integer(value) or not low <= value <= high:  # type: ignore[operator]
        raise ValueError(f"{name} {_show(value)}: a whole number from {low} to {high} expected")
    return int(value)  # type: ignore[arg-type]


def _number(config: Mapping[str, Any], name: str, low: float, high: float) -> None:
    value = config.get(name)
    if value is not None and not (_is_number(value) and low <= value <= high):
        raise ValueError(f"{name} {_show(value)}: a number from {low:g} expected")


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _show(value: Any) -> str:
    """A value for a message, never long: a file may hold structures whose text would have no end."""
    if _is_integer(value) and abs(value) > 2**63:
        return "with far too many digits"
    return repr(value)[:60] if isinstance(value, str | int | float | None) else f"(a {type(value).__name__})"
