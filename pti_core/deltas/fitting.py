"""Codec `adaptive`: the smallest delta whose picture is as good as the tuned one.

Adam moves every weight by about the same amount, whether the picture needs it or not. What an error in a weight costs
is measured: the squared gradient of random combinations of the picture's pixels and LPIPS features (Hutchinson's
estimate of the Gauss-Newton matrix' diagonal), as a weight for each output and each input channel. In units of that
cost one step serves the whole generator, and a search finds the largest step at which every image keeps the promise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pti_core.deltas.flat import Flat, moved_together
from pti_core.deltas.layered import Weights, matrix_shape, pack
from pti_core.deltas.table import EncodedTensor, check_finite, decode, encode
from pti_core.deltas.together import Together
from pti_core.generators.base import Generator
from pti_core.generators.network import with_weights
from pti_core.machine.out_of_memory import drop_when_short
from pti_core.machine.overlap import read_ahead
from pti_core.machine.parallel import on_idle_cores
from pti_core.metrics import round_uint8
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
KEPT: Final = 8  # as in tuning: images of a group whose features are kept
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
    old, new = base.tunable(), tuned.tunable()

    def difference() -> Flat:
        found = Flat([tuple(p.shape) for p in old.values()], images.device)
        torch._foreach_copy_(found.views, [p.detach() for p in new.values()])
        torch._foreach_sub_(found.views, [p.detach() for p in old.values()])
        return found

    delta = difference()
    if codec != "adaptive":
        return encode(dict(zip(old, delta.views, strict=True)), codec)
    if not all(map(math.isfinite, torch.stack(delta.values.aminmax()).tolist())):  # read once for all
        for name, value in zip(old, delta.views, strict=True):
            check_finite(name, value)
    costs = importance(tuned, images, pivots, lpips, max_resolution)
    parts = Together(delta, channel_weights(list(costs.values())))
    del costs
    trial = Flat([tuple(p.shape) for p in old.values()], images.device)
    good = _judge(base, tuned, images, pivots, lpips, at_once or len(images), promise, trial)

    def keeps(step: float) -> bool:
        parts.quantise(step, trial)
        return good()

    step = largest_step(keeps)
    if step is not None:
        payloads = on_idle_cores(pack, parts.layers(step, trial), images.device)
        return [
            EncodedTensor(name, tuple(p.shape), codec, step if payload else 0.0, payload)
            for (name, p), payload in zip(old.items(), payloads, strict=True)
        ]
    rows = []
    for fallback in _FALLBACKS:
        rows = encode(dict(zip(old, difference().views, strict=True)), fallback)
        torch._foreach_copy_(trial.views, moved_together(list(decode(rows).values()), images.device))
        if good():
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
    total: list[Tensor] = []
    made: Iterator[list[list[Tensor]]] | None = None
    try:
        for p in parameters.values():
            p.requires_grad_(True)
        for i in range(len(images)):
            one = pivots[i : i + 1]
            drawn = generator.synthesis(one.ws, noise=one.noise)
            outputs = [*lpips.features(area_downsample(drawn, max_resolution)), drawn / math.sqrt(drawn.numel())]
            shapes = tuple(x.shape for x in outputs)
            made = made or _made_ahead(len(images), shapes, images.device)
            for probe, random in enumerate(next(made)):
                mixed = [(x * r).sum() for x, r in zip(outputs, random, strict=True)]
                gradients = torch.autograd.grad(
                    torch.stack(mixed).sum(), list(parameters.values()), retain_graph=probe + 1 < PROBES
                )
                squares = torch._foreach_mul(gradients, gradients)
                del gradients
                torch._foreach_div_(squares, PROBES * len(images))
                if total:
                    torch._foreach_add_(total, squares)
                else:
                    total = list(squares)
    finally:
        for name, p in parameters.items():
            p.requires_grad_(wanted[name])
    return dict(zip(parameters, total, strict=True))


def _made_ahead(images: int, shapes: tuple[torch.Size, ...], device: torch.device) -> Iterator[list[list[Tensor]]]:
    """The probes of each image; where the device is not the CPU, the next ones are made while it has these at work."""
    make = partial(_probes, PROBES, shapes, str(device))
    if device.type == "cpu" or images == 1:
        yield from map(make, range(images))
    else:
        yield from (probes for _, probes in read_ahead(range(images), make))


@lru_cache(1)  # the first image's are those of all where each has a generator of its own
def _probes(count: int, shapes: tuple[torch.Size, ...], device: str, image: int) -> list[list[Tensor]]:
    random = torch.Generator().manual_seed(image)  # on the CPU: the same on every device
    return [[torch.randn(shape, generator=random).to(device) for shape in shapes] for _ in range(count)]


drop_when_short(_probes.cache_clear)


def channel_weights(costs: Sequence[Tensor]) -> list[Weights]:
    """Weights of tensors by output and input channel: about the root of their costs, nearer to a tensor's mean
    (`_TRUST`).
    """
    sums: list[Tensor] = []
    for cost in costs:
        o, i, k = matrix_shape(tuple(cost.shape))
        by_channel = cost.double().reshape(o, i, k)
        by_channel = by_channel.mean(dim=2) if k > 1 else by_channel[:, :, 0]
        one = [by_channel[0, 0], by_channel[0], by_channel[0]]  # means of one channel by one
        sums += [by_channel.mean(), by_channel.mean(dim=1), by_channel.mean(dim=0)] if o * i > 1 else one
    found = [x.numpy() for x in moved_together(sums, torch.device("cpu"))]  # read once
    return [_weights(float(mean), rows, columns) for mean, rows, columns in zip(*[iter(found)] * 3, strict=True)]


def _weights(mean: float, by_row: NDArray[np.float64], by_column: NDArray[np.float64]) -> Weights:
    mean = max(mean, 1e-30)
    rows, columns = (_TRUST * np.log2(np.maximum(costs / mean, _FLOOR)) for costs in (by_row, by_column))
    rows += math.log2(mean)
    return Weights(*(each.round().clip(-120, 120).astype(np.int8) for each in (rows, columns)))


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
    base: Generator,
    tuned: Generator,
    images: Tensor,
    pivots: Pivots,
    lpips: LPIPS,
    at_once: int,
    promise: Promise,
    trial: Flat,
) -> Callable[[], bool]:
    """Whether the generator with the delta in `trial` keeps the promise; `trial` becomes its weights."""
    parts = [slice(i, i + at_once) for i in range(0, len(images), at_once)]
    old = [p.detach() for p in base.tunable().values()]
    drawing = with_weights(base, trial.views)
    targets = [round_uint8(images[part]) for part in parts]
    kept = [lpips.features(target) for target in targets] if len(images) <= KEPT else []

    @torch.no_grad()
    def quality(generator: Generator) -> Tensor:
        """LPIPS and MSE `[2, K]`."""
        found = []
        for i, (part, target) in enumerate(zip(parts, targets, strict=True)):
            some = pivots[part]
            drawn = round_uint8(generator.synthesis(some.ws, noise=some.noise))
            distance = lpips.distance(kept[i] if kept else lpips.features(target), lpips.features(drawn))
            found.append(torch.stack([distance, (drawn - target).square().mean(dim=(1, 2, 3))]))
        return torch.cat(found, dim=1)

    goal = quality(tuned.with_precision("fp32"))
    limits = torch.stack([goal[0] + promise.lpips, goal[1] * 10 ** (promise.decibels / 10)])

    @torch.no_grad()
    def good() -> bool:
        torch._foreach_add_(trial.views, old)
        return bool((quality(drawing) <= limits).all())

    return good
