"""Codec `adaptive`: the smallest delta whose picture is as good as the tuned one.

Adam moves every weight by about the same amount, whether the picture needs it or not. What an error in a weight costs
is measured: the squared gradient of random combinations of the picture's pixels and LPIPS features (Hutchinson's
estimate of the Gauss-Newton matrix' diagonal), as a weight for each output and each input channel. In units of that
cost one step serves the whole generator, and a search finds the largest step at which every image keeps the promise.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import torch
from torch import Tensor

from pti_core.deltas.layered import Decomposed, Weights, matrix_shape, pack
from pti_core.deltas.table import EncodedTensor, check_finite, decode, encode
from pti_core.generators.base import Generator
from pti_core.metrics import round_uint8
from pti_core.parallel import on_idle_cores
from pti_core.perceptual import LPIPS, area_downsample
from pti_core.pivot import Pivots


@dataclass(frozen=True)
class Promise:
    """How much worse than the tuned picture a stored one may be, for every image."""

    lpips: float = 0.0005
    decibels: float = 0.1  # of PSNR


PROBES: Final = 2
"""Random combinations for an image."""

FIRST_STEP: Final = 1.5e-5
"""Where the search begins, in units of the picture (see `importance`); it goes either way by factors."""

GRID: Final = 8
"""Steps that are tried, by octave."""

_FARTHEST: Final = 10 * GRID  # further down are more bytes than int8 takes, and then integers beyond int32
_TRUST: Final = 0.6
"""How much of a channel's cost, in logarithms, its weight follows. Two random combinations tell it only roughly, and to
trust them less takes an eighth off the bytes at the same promise; to ask more of them takes less off, and time."""

_FLOOR: Final = 1e-4  # a channel's cost is at least this share of its tensor's mean: beyond that it is noise
_FALLBACKS: Final = ("int8", "fp16")


def fit(
    base: Generator,
    tuned: Generator,
    images: Tensor,
    pivots: Pivots,
    lpips: LPIPS,
    codec: str = "adaptive",
    at_once: int | None = None,
    max_resolution: int = 1024,
    promise: Promise = Promise(),
) -> list[EncodedTensor]:
    """The rows that store a tuned generator for images `[K, C, H, W]` in [-1, 1] at their pivots.

    `pivots` are what a reader gets, and what the tuned generator was tuned at. A codec other than `adaptive` does not
    look at the images. `adaptive` keeps `promise` for every image: where no step does, `int8` follows, then `fp16`.
    Images are drawn `at_once` (all by default), and reduced to `max_resolution` for the gradients. The generators are
    not changed. On a CPU the same inputs give the same bytes. Raises DeltaError where a value of the delta is not
    finite.
    """
    old = base.tunable()
    delta = {name: (p - old[name]).detach() for name, p in tuned.tunable().items()}
    if codec != "adaptive":
        return encode(delta, codec)
    for name, value in delta.items():
        check_finite(name, value)
    costs = importance(tuned, images, pivots, lpips, max_resolution)

    def decomposed(name: str) -> Decomposed:
        return Decomposed(delta[name], channel_weights(costs.pop(name)))

    parts = dict(zip(delta, on_idle_cores(decomposed, delta, images.device), strict=True))
    keeps = _judge(base, tuned, images, pivots, lpips, at_once or len(images), promise)

    def at(step: float) -> dict[str, Tensor]:
        return {name: part.quantise(step, part.rank(step))[1] for name, part in parts.items()}

    step = largest_step(lambda step: keeps(at(step)))
    if step is not None:
        layers = (part.quantise(step, part.rank(step))[0] for part in parts.values())
        payloads = on_idle_cores(pack, layers, images.device)
        return [
            EncodedTensor(name, part.shape, codec, step if payload else 0.0, payload)
            for (name, part), payload in zip(parts.items(), payloads, strict=True)
        ]
    rows = []
    for fallback in _FALLBACKS:
        rows = encode(delta, fallback)
        if keeps(decode(rows)):
            break
    return rows


def importance(
    generator: Generator, images: Tensor, pivots: Pivots, lpips: LPIPS, max_resolution: int
) -> dict[str, Tensor]:
    """What an error of variance 1 in each weight adds to LPIPS + MSE of the images, by parameter name.

    (Expected squares of J^T v for the Jacobian J of features and pixels, v ~ N(0, I), a mean over images and probes.)
    """
    parameters = generator.tunable()
    wanted = {name: p.requires_grad for name, p in parameters.items()}
    total = {name: torch.zeros_like(p) for name, p in parameters.items()}
    try:
        for p in parameters.values():
            p.requires_grad_(True)
        for i in range(len(images)):
            one = pivots[i : i + 1]
            drawn = generator.synthesis(one.ws, noise=one.noise)
            outputs = [*lpips.features(area_downsample(drawn, max_resolution)), drawn / math.sqrt(drawn.numel())]
            shapes = tuple(x.shape for x in outputs)
            for probe, random in enumerate(_probes(i, PROBES, shapes, str(images.device))):
                mixed = [(x * r).sum() for x, r in zip(outputs, random, strict=True)]
                gradients = torch.autograd.grad(
                    torch.stack(mixed).sum(), list(parameters.values()), retain_graph=probe + 1 < PROBES
                )
                for name, gradient in zip(parameters, gradients, strict=True):
                    total[name] += gradient.square() / (PROBES * len(images))
    finally:
        for name, p in parameters.items():
            p.requires_grad_(wanted[name])
    return total


@lru_cache(1)  # the first image's are those of all where each has a generator of its own
def _probes(image: int, count: int, shapes: tuple[torch.Size, ...], device: str) -> list[list[Tensor]]:
    random = torch.Generator().manual_seed(image)  # on the CPU: the same on every device
    return [[torch.randn(shape, generator=random).to(device) for shape in shapes] for _ in range(count)]


def channel_weights(costs: Tensor) -> Weights:
    """Weights by output and input channel: about the root of the costs of a tensor, nearer to its mean (`_TRUST`)."""
    o, i, k = matrix_shape(tuple(costs.shape))
    by_channel = costs.double().reshape(o, i, k).mean(dim=2)
    mean = by_channel.mean().clamp_min(1e-30)
    by_mean = torch.cat((by_channel.mean(dim=1), by_channel.mean(dim=0))) / mean
    exponents = _TRUST * by_mean.clamp_min(_FLOOR).log2()
    exponents[:o] += mean.log2()
    found = exponents.round().clamp(-120, 120).to(torch.int8).cpu().numpy()  # read once
    return Weights(found[:o], found[o:])


def largest_step(keeps: Callable[[float], bool]) -> float | None:
    """The largest step of the grid that keeps the promise, as far as one search tells; None where none is found.

    From `FIRST_STEP` by strides that double, then by bisection. Only yes and no count: how near a step came would save
    a drawing now and then, and lead to another step on every device, since a rounded pixel here or there moves it.
    """
    at, stride = 0, GRID // 4  # as powers of 2^(1 / GRID)
    low: int | None = None  # keeps it
    high: int | None = None  # does not
    while low is None or high is None or high - low > 1:
        if keeps(FIRST_STEP * 2 ** (at / GRID)):
            low = at
        else:
            high = at
        if low is not None and high is not None:
            at = (low + high) // 2
        elif abs(at) == _FARTHEST:
            break
        else:
            at = min(at + stride, _FARTHEST) if high is None else max(at - stride, -_FARTHEST)
            stride *= 2
    return None if low is None else FIRST_STEP * 2 ** (low / GRID)


def _judge(
    base: Generator, tuned: Generator, images: Tensor, pivots: Pivots, lpips: LPIPS, at_once: int, promise: Promise
) -> Callable[[Mapping[str, Tensor]], bool]:
    """Whether the generator with a delta keeps the promise."""
    parts = [slice(i, i + at_once) for i in range(0, len(images), at_once)]
    trial, old = copy.deepcopy(base), base.tunable()
    weights = trial.tunable()
    targets = [round_uint8(images[part]) for part in parts]

    @torch.no_grad()
    def quality(generator: Generator) -> Tensor:
        """LPIPS and MSE `[2, K]`."""
        found = []
        for part, target in zip(parts, targets, strict=True):
            some = pivots[part]
            drawn = round_uint8(generator.synthesis(some.ws, noise=some.noise))
            found.append(torch.stack([lpips(target, drawn), (drawn - target).square().mean(dim=(1, 2, 3))]))
        return torch.cat(found, dim=1)

    goal = quality(tuned.with_precision("fp32"))
    limits = torch.stack([goal[0] + promise.lpips, goal[1] * 10 ** (promise.decibels / 10)])

    @torch.no_grad()
    def keeps(delta: Mapping[str, Tensor]) -> bool:
        for name, value in delta.items():
            torch.add(old[name], value.to(old[name].device), out=weights[name])
        return bool((quality(trial) <= limits).all())

    return keeps
