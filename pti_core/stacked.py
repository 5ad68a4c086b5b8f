"""Pivotal tuning of several images at once, each with a generator of its own: weights stacked, one pass for all.

The same arithmetic as `tuning.tune` for one image after the other: every image has its own parameters `[B, ...]`, its
own Adam moments (Adam works element by element) and its own random stream, and a finished image leaves the stack. Small
kernels of one image leave a GPU idle; a stack fills it. On a CPU an image a core is faster (`parallel`).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from pti_core.bases import Bases, turned, turned_back
from pti_core.config import LocalityConfig, TuningConfig
from pti_core.falling import FallingRate
from pti_core.generators.base import Generator
from pti_core.locality import interpolate
from pti_core.perceptual import LPIPS, area_downsample
from pti_core.pivot import OnStep, Pivots
from pti_core.sampling import ImageRandom, sample_w
from pti_core.tuning import Tuned, locality_loss, moved_copy, tuned_names

ADAM_EPS = 1e-8  # as torch's


class _Drawing(nn.Module):
    """A generator's synthesis as a module whose parameters go by the names of `tunable()`."""

    def __init__(self, generator: Generator) -> None:
        super().__init__()
        self.generator = generator

    def forward(self, ws: Tensor, noise: list[Tensor]) -> Tensor:
        return self.generator.synthesis(ws, noise=noise)


class Stack:
    """Stacked weights `[B, ...]` of one generator's tuned parameters, their Adam, and drawing with all of them."""

    def __init__(self, generator: Generator, count: int, config: TuningConfig, bases: Bases | None = None) -> None:
        self.origin, self.bases = generator, bases
        generator = bases.along_w(generator) if bases else generator
        # Drawing swaps weights into a module for a moment; a copy of its own keeps others from seeing them.
        self.base, self.drawing, self.config = generator, _Drawing(copy.deepcopy(generator)), config
        # Each a tensor of its own: Adam changes them in place.
        parameters = generator.tunable()
        old = {name: parameters[name].detach()[None] for name in tuned_names(generator, config.from_resolution)}
        self.theta = {name: p.repeat(count, *[1] * (p.ndim - 1)).requires_grad_(True) for name, p in old.items()}
        self.old = list(old.values())
        self.means = {name: torch.zeros_like(p) for name, p in self.theta.items()}
        self.squares = {name: torch.zeros_like(p) for name, p in self.theta.items()}
        self.steps, self.ways = 0, {name: bases.of(name, parameters[name]) if bases else None for name in old}
        # What has been added to each, in its basis' coordinates; maps from w are themselves in them (`along_w`).
        turned_ones = [name for name, way in self.ways.items() if way is not None and parameters[name].ndim > 2]
        self.moved = {name: torch.zeros_like(self.theta[name], requires_grad=False) for name in turned_ones}

    def draw(self, ws: Tensor, noise: Sequence[Tensor] | None = None) -> Tensor:
        """Images `[B, C, H, W]` of ws `[B, num_ws, w_dim]`, each by its own weights.

        `noise`: one map `[B, 1, H, W]` a layer; the generator's own without.
        """
        if noise is None:
            noise = [n[None].expand(len(ws), 1, -1, -1) for n in self.base.noise_const()]

        def one(theta: dict[str, Tensor], ws: Tensor, *noise: Tensor) -> Tensor:
            named = {f"generator.{name}": value for name, value in theta.items()}
            image: Tensor = functional_call(self.drawing, named, (ws[None], [n[None] for n in noise]))
            return image[0]

        images: Tensor = vmap(one)(self.theta, ws, *noise)
        return images

    @torch.no_grad()
    def step(self, factors: Sequence[float]) -> None:
        """One step of Adam, each place with its own factor of the learning rate, and the pull back.

        (Kingma and Ba 2015, algorithm 1. torch's Adam has one rate for a whole tensor.)
        """
        self.steps += 1
        b1, b2, lr = self.config.beta1, self.config.beta2, self.config.lr
        places = torch.tensor(factors, device=next(iter(self.theta.values())).device)
        for (name, p), old in zip(self.theta.items(), self.old, strict=True):
            if p.grad is None:
                continue
            mean, square, way = self.means[name], self.squares[name], self.ways[name]
            turn = way if name in self.moved else None
            gradient = p.grad if turn is None else vmap(turned, (0, None))(p.grad, turn)
            mean.lerp_(gradient, 1 - b1)
            square.mul_(b2).addcmul_(gradient, gradient, value=1 - b2)
            rate = (places * (lr / (1 - b1**self.steps))).view(-1, *[1] * (p.ndim - 1))
            update = rate * mean / ((square / (1 - b2**self.steps)).sqrt_().add_(ADAM_EPS))
            moved, origin = (p, old) if turn is None else (self.moved[name], old.new_zeros(()))
            moved.sub_(update)
            if self.config.pull > 0:
                share = (places * self.config.pull).view_as(rate)
                moved.lerp_(origin.expand_as(p), share.expand_as(p) if way is None else way.shares(share, p[0]))
            if turn is not None:
                torch.add(old, vmap(turned_back, (0, None))(moved, turn), out=p)
            p.grad = None

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these places of the stack only."""
        index = torch.tensor(rows, dtype=torch.long, device=next(iter(self.theta.values())).device)
        for values in (self.means, self.squares, self.moved):
            values.update({name: value[index] for name, value in values.items()})
        self.theta = {name: p.detach()[index].requires_grad_(True) for name, p in self.theta.items()}

    def generator(self, row: int) -> Generator:
        """A copy of the generator with the weights of one place."""
        theta = {name: stacked.detach()[row] for name, stacked in self.theta.items()}
        if self.bases:
            return moved_copy(self.origin, self.bases.delta(theta, self.base.tunable()))
        new: Generator = copy.deepcopy(self.base).requires_grad_(False)  # type: ignore[attr-defined]
        with torch.no_grad():
            for name, value in theta.items():
                new.tunable()[name].copy_(value)
        return new


def tune_stack(
    generator: Generator,
    targets: Tensor,
    pivots: Pivots,
    seeds: Sequence[int],
    config: TuningConfig,
    locality: LocalityConfig,
    lpips: LPIPS,
    on_step: OnStep | None = None,
    bases: Bases | None = None,
) -> list[Tuned]:
    """Tune a generator of its own for each of targets `[B, C, H, W]` in [-1, 1]: what `tune` gives for each alone.

    `on_step` gets the LPIPS of the images that are still in work.
    """
    if not len(targets) == len(pivots.w) == len(seeds):
        raise ValueError(f"{len(targets)} images, {len(pivots.w)} pivots, {len(seeds)} seeds: one each expected")
    small = area_downsample(targets, config.max_resolution)
    with torch.no_grad():
        features = lpips.features(small)
    ws = bases.w_along(pivots.ws) if bases else pivots.ws
    noise, random = pivots.noise, ImageRandom(seeds, targets.device)
    stack = Stack(generator, len(targets), config, bases)
    at = list(range(len(targets)))  # which image is at which place of the stack
    rates, factors = [FallingRate(config) for _ in seeds], dict[int, float | None]()
    done: dict[int, Tuned] = {}

    def leave(rows: Sequence[int], distance: Tensor, steps: int) -> None:
        for row in rows:
            done[at[row]] = Tuned(stack.generator(row), steps, distance.detach()[row : row + 1])

    step, distance = 0, torch.full((len(targets),), torch.inf)
    while at and step < config.steps:
        images = stack.draw(ws, noise)
        distance = lpips.distance(lpips.features(area_downsample(images, config.max_resolution)), features)
        for image, value in zip(at, distance.tolist(), strict=True):
            factors[image] = rates[image].factor(step, value)
        left = [row for row, image in enumerate(at) if factors[image] is not None]
        if len(left) < len(at):
            leave([row for row in range(len(at)) if row not in left], distance, step)
            stack.keep(left)
            at, ws, targets = [at[row] for row in left], ws[left], targets[left]
            noise, features = [n[left] for n in noise], [f[left] for f in features]
            random.generators = [random.generators[row] for row in left]
            continue  # the same step, of those that are left
        mse = (images - targets).square().mean(dim=(1, 2, 3))
        (config.lpips_weight * distance + config.mse_weight * mse).sum().backward()
        if on_step is not None:
            on_step(step + 1, distance.detach())
        if locality.enabled and locality.weight > 0 and step % locality.interval == 0:
            weight = locality.weight * locality.interval / locality.samples
            for _ in range(locality.samples):
                w_z = sample_w(generator, random)
                ws_r = interpolate(ws, bases.w_along(w_z) if bases else w_z, locality.alpha).ws
                loss_r = locality_loss(stack.base, stack.draw, ws_r, locality, config.max_resolution, lpips)
                (weight * loss_r).sum().backward()
        stack.step([factors[image] or 0.0 for image in at])
        step += 1
    leave(range(len(at)), distance, step)
    return [done[i] for i in range(len(seeds))]
