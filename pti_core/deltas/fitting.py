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

FIRST_STEP: Final = 2e-5
"""Where the search begins, in units of the picture (see `importance`); it goes either way by factors."""

_DOUBLINGS, _HALVINGS = 12, 3
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
    parts = {name: Decomposed(value, channel_weights(costs[name])) for name, value in delta.items()}
    del costs
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
    """Weights by output and input channel whose product is about the square root of the costs of a tensor."""
    o, i, k = matrix_shape(tuple(costs.shape))
    by_channel = costs.double().reshape(o, i, k).mean(dim=2)
    mean = by_channel.mean().clamp_min(1e-30)
    rows = by_channel.mean(dim=1).clamp_min(_FLOOR * mean)
    columns = (by_channel.mean(dim=0) / mean).clamp_min(_FLOOR)
    exponents = torch.cat((rows, columns)).log2().round().clamp(-120, 120).to(torch.int8).cpu().numpy()  # read once
    return Weights(exponents[:o], exponents[o:])


def largest_step(keeps: Callable[[float], bool]) -> float | None:
    """The largest step that keeps the promise, to 10 %; None where none is found.

    By doubling or halving from `FIRST_STEP`, then bisection of the factor of two.
    """
    step = FIRST_STEP
    good, bad = (step, None) if keeps(step) else (None, step)
    for _ in range(_DOUBLINGS):
        if good is not None and bad is not None:
            break
        step = step * 2 if good is not None else step / 2
        if keeps(step):
            good = step
        else:
            bad = step
    if good is None or bad is None:
        return good
    for _ in range(_HALVINGS):
        step = math.sqrt(good * bad)
        if keeps(step):
            good = step
        else:
            bad = step
    return good


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
