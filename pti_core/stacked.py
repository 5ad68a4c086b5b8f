"""Pivotal tuning of several images at once, each with a generator of its own: weights stacked, one pass for all.

The same arithmetic as `tuning.tune` for one image after the other: every image has its own parameters `[B, ...]`, its
own Adam moments (Adam works element by element) and its own random stream, and finished images leave the stack. Small
kernels of one image leave a GPU idle; a stack fills it. On a CPU an image a core is faster (`parallel`).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from pti_core.bases import Bases, Shares, turned, turned_back
from pti_core.config import LocalityConfig, TuningConfig
from pti_core.falling import FallingRate
from pti_core.generators.base import Generator
from pti_core.perceptual import LPIPS, area_downsample
from pti_core.pivot import OnStep, Pivots
from pti_core.sampling import ImageRandom
from pti_core.tuning import (
    Tuned,
    adam,
    locality_loss,
    locality_places,
    locality_weight,
    moved_copy,
    tuned_names,
)

SHRINK = 0.75
"""The stack is made smaller once at most this share of it is in work: every size needs kernels of its own to be chosen,
and copies all weights."""


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
        # What Adam does at the whole rate; each place of the stack then gets its own share of it.
        self.updates = {name: torch.zeros_like(p, requires_grad=False) for name, p in self.theta.items()}
        self.adam = adam(list(self.updates.values()), config)
        self.ways = {name: bases.of(name, parameters[name]) if bases else None for name in old}
        self.shares = Shares(list(self.ways.values()), [parameters[name] for name in old])
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
    def step(self, factors: Tensor) -> None:
        """One step of Adam, each place with its own factor `[B]` of the learning rate, and the pull back."""
        torch._foreach_zero_(list(self.updates.values()))
        for name, p in self.theta.items():
            way = self.ways[name] if name in self.moved else None
            gradient, p.grad = p.grad, None
            if gradient is not None and way is not None:
                gradient = vmap(turned, (0, None))(gradient, way)
            self.updates[name].grad = gradient
        self.adam.step()
        pull, zero = factors * self.config.pull, factors.new_zeros(())
        for (name, p), old, along in zip(self.theta.items(), self.old, self.shares.at(pull), strict=True):
            if self.updates[name].grad is None:
                continue
            way, factor = self.ways[name], factors.view(-1, *[1] * (p.ndim - 1))
            turned_too = name in self.moved
            moved, origin = (self.moved[name], zero) if turned_too else (p, old)
            moved.addcmul_(self.updates[name], factor)
            self.updates[name].grad = None  # not to be held while the next images are drawn
            if self.config.pull > 0:
                moved.lerp_(origin.expand_as(p), (pull.view_as(factor) if along is None else along).expand_as(p))
            if turned_too:
                torch.add(old, vmap(turned_back, (0, None))(moved, way), out=p)

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these places of the stack only."""
        index = torch.tensor(rows, dtype=torch.long, device=next(iter(self.theta.values())).device)
        states = [self.adam.state.get(update, {}) for update in self.updates.values()]
        for values in (self.updates, self.moved):
            values.update({name: value[index] for name, value in values.items()})
        self.adam = adam(list(self.updates.values()), self.config)
        for update, state in zip(self.updates.values(), states, strict=True):
            # `step` is one number for all places.
            self.adam.state[update] = {key: value[index] if value.ndim else value for key, value in state.items()}
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

    Raises ValueError as `tune` does.
    """
    if not len(targets) == len(pivots.w) == len(seeds):
        raise ValueError(f"{len(targets)} images, {len(pivots.w)} pivots, {len(seeds)} seeds: one each expected")
    small = area_downsample(targets, config.max_resolution)
    with torch.no_grad():
        features = lpips.features(small)
    ws = bases.pivots_along(pivots.ws) if bases else pivots.ws
    noise, random = pivots.noise, ImageRandom(seeds, targets.device)
    stack = Stack(generator, len(targets), config, bases)
    at = list(range(len(targets)))  # which image is at which place of the stack
    rates, factors = [FallingRate(config) for _ in seeds], dict[int, float | None]()
    done: dict[int, Tuned] = {}

    def leave(rows: Sequence[int], distance: Tensor, steps: int) -> None:
        for row in rows:
            done[at[row]] = Tuned(stack.generator(row), steps, distance.detach()[row : row + 1])

    working, step, distance = list(at), 0, torch.full((len(targets),), torch.inf)  # places that are not finished
    while step < config.steps:
        images = stack.draw(ws, noise)
        loss = lpips.distance(lpips.features(area_downsample(images, config.max_resolution)), features)
        distance = loss.detach().cpu()  # all that a step waits for a GPU
        for row in working:
            factors[at[row]] = rates[at[row]].factor(step, float(distance[row]))
        leave([row for row in working if factors[at[row]] is None], distance, step)
        working = [row for row in working if factors[at[row]] is not None]
        if not working:
            break
        # Where a GPU has nothing to do: what comes from the CPU waits for what was sent before it.
        rate = torch.tensor([factors[image] or 0.0 for image in at], device=targets.device)
        places = locality_places(generator, ws, random, locality, bases, step)
        mse = (images - targets).square().mean(dim=(1, 2, 3))
        (config.lpips_weight * loss + config.mse_weight * mse).sum().backward()
        if on_step is not None:  # while a GPU is at work
            of_all = torch.full((len(seeds),), torch.nan)
            of_all[[at[row] for row in working]] = distance[working]
            on_step(step + 1, of_all)
        for ws_r in places:
            loss_r = locality_loss(stack.base, stack.draw, ws_r, locality, config.max_resolution, lpips)
            (locality_weight(locality) * loss_r).sum().backward()
        stack.step(rate)
        step += 1
        if len(working) <= SHRINK * len(at):
            stack.keep(working)
            at, ws, targets = [at[row] for row in working], ws[working], targets[working]
            noise, features, distance = [n[working] for n in noise], [f[working] for f in features], distance[working]
            random.generators = [random.generators[row] for row in working]
            working = list(range(len(at)))
    leave(working, distance, step)
    return [done[i] for i in range(len(seeds))]
