"""Pivotal tuning: change the generator slightly so that it draws the images at their pivots (PTI equations 2 to 5)."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from pti_core import deltas
from pti_core.bases import Bases, Shares, turned, turned_back
from pti_core.config import LocalityConfig, TuningConfig
from pti_core.falling import FallingRate
from pti_core.generators.base import Generator
from pti_core.locality import interpolate
from pti_core.perceptual import LPIPS, area_downsample
from pti_core.pivot import OnStep, Pivots
from pti_core.sampling import ImageRandom, sample_w

G = TypeVar("G", bound=nn.Module)

KEPT = 8
"""Images of a group whose features (43 MB at 1024 pixels) are kept; those of larger groups are made at each step."""


@dataclass(frozen=True)
class Tuned:
    """A tuned generator and how it was reached."""

    generator: Generator  # theta*
    steps: int
    lpips: Tensor  # [N], on the CPU: of the last step, before its update
    lost: Sequence[int] = ()  # which images ended it, since their LPIPS was no number while that of others was

    def delta(self, base: Generator) -> dict[str, Tensor]:
        """theta* - theta, by parameter name."""
        old = base.tunable()
        return {name: (p - old[name]).detach() for name, p in self.generator.tunable().items()}


def tuned_names(generator: Generator, from_resolution: int = 4) -> list[str]:
    """The parameters that are tuned: those of `tunable()` that work on features of at least this many pixels.

    Raises ValueError where there is none.
    """
    names = [name for name, pixels in generator.tunable_resolutions().items() if pixels >= from_resolution]
    if not names:
        top = max(generator.tunable_resolutions().values())
        raise ValueError(f"tuning.from_resolution {from_resolution}: at most {top}, where this generator's layers end")
    return names


def tunable_copy(generator: G, from_resolution: int = 4) -> G:
    """A copy whose `tuned_names` take gradients, and nothing else does."""
    new = copy.deepcopy(generator).requires_grad_(False)
    parameters = new.tunable()  # type: ignore[operator]
    for name in tuned_names(generator, from_resolution):  # type: ignore[arg-type]
        parameters[name].requires_grad_(True)
    return new


def tune(
    generator: Generator,
    targets: Tensor,
    pivots: Pivots,
    seeds: Sequence[int],
    config: TuningConfig,
    locality: LocalityConfig,
    lpips: LPIPS,
    on_step: OnStep | None = None,
    at_once: int | None = None,
    bases: Bases | None = None,
) -> Tuned:
    """Tune one generator for targets `[K, C, H, W]` in [-1, 1] at their pivots: K = 1, or a group (multi-pivot).

    Minimises, summed over the images, LPIPS(x, x_p) + lambda_L2 MSE(x, x_p) + lambda_R L_R with x_p = G(w_p, n;
    theta*), until every image's LPIPS is at most `config.stop_lpips` (see `falling`). L_R compares old and new
    generator, both with the generator's own noise, at points w_r that are drawn afresh from each image's random
    stream. Where the LPIPS of some images and not of all is no number, it ends and names them. `at_once` images are
    drawn together, all by default; gradients add up, so that it decides memory and time only. `bases` (see
    `bases.input_bases`) are the directions that Adam works along, in place of the weights' own.

    Raises ValueError where images, pivots and seeds are not as many, or no layer is of at least
    `config.from_resolution`.
    """
    if not len(targets) == len(pivots.w) == len(seeds):
        raise ValueError(f"{len(targets)} images, {len(pivots.w)} pivots, {len(seeds)} seeds: one each expected")
    base = bases.along_w(generator) if bases else generator
    new = tunable_copy(base, config.from_resolution)  # type: ignore[type-var]
    names = tuned_names(generator, config.from_resolution)
    parameters, old = ([g.tunable()[name] for name in names] for g in (new, base))
    ways = [bases.of(name, p) if bases else None for name, p in zip(names, parameters, strict=True)]
    turns = [None if p.ndim == 2 else way for p, way in zip(parameters, ways, strict=True)]  # maps from w are turned
    # Where the basis is another, Adam and the pull work on what has been added, in that basis' coordinates.
    moved = [p if turn is None else torch.zeros_like(p) for p, turn in zip(parameters, turns, strict=True)]
    origins = [q if turn is None else q.new_zeros(()) for q, turn in zip(old, turns, strict=True)]
    shares, optimizer = Shares(ways, parameters), adam(moved, config)
    random = ImageRandom(seeds, targets.device)
    ws, k = bases.pivots_along(pivots.ws) if bases else pivots.ws, len(targets)
    parts = [slice(i, i + (at_once or k)) for i in range(0, k, at_once or k)]
    distance, done, rate, lost = torch.full((k,), torch.inf), 0, FallingRate(config), list[int]()

    def features(images: Tensor) -> list[Tensor]:
        return lpips.features(area_downsample(images, config.max_resolution))

    @torch.no_grad()
    def wanted(part: slice) -> list[Tensor]:
        return features(targets[part])

    kept = {part.start: wanted(part) for part in parts} if k <= KEPT else {}

    for step in range(config.steps):
        distances = []
        for part in parts:
            images = new.synthesis(ws[part], noise=[n[part] for n in pivots.noise])
            now = lpips.distance(features(images), kept.get(part.start) or wanted(part))
            mse = (images - targets[part]).square().mean(dim=(1, 2, 3))
            loss = (config.lpips_weight * now + config.mse_weight * mse).sum()
            distances.append(now.detach())
            if part is not parts[-1]:
                loss.backward()
        distance = torch.cat(distances).cpu()  # all that a step waits for a GPU
        lost = (~distance.isfinite()).nonzero().flatten().tolist()
        if 0 < len(lost) < k:  # their gradients would take the weights of all
            break
        factor = rate.factor(step, float(distance.max()))
        if factor is not None:
            places = locality_places(generator, ws, random, locality, bases, step)
            loss.backward()
        if on_step is not None:  # while a GPU is at work
            on_step(step + 1, distance)
        if factor is None:
            break  # before the update: this theta* is the one that was just measured
        optimizer.param_groups[0]["lr"] = config.lr * factor
        for ws_r in places:
            for part in parts:
                loss_r = locality_loss(base, new.synthesis, ws_r[part], locality, config.max_resolution, lpips)
                (locality_weight(locality) * loss_r).sum().backward()
        for p, added, turn in zip(parameters, moved, turns, strict=True):
            if turn is not None and p.grad is not None:
                added.grad, p.grad = turned(p.grad, turn), None
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        pull_back(moved, origins, shares, config.pull * factor)
        with torch.no_grad():
            for p, q, added, turn in zip(parameters, old, moved, turns, strict=True):
                if turn is not None:
                    torch.add(q, turned_back(added, turn), out=p)
        done = step + 1
    for p in parameters:
        p.grad = None  # of the parts before an end
    new.requires_grad_(False)  # type: ignore[attr-defined]
    if bases:
        moved_by = bases.delta(dict(zip(names, parameters, strict=True)), base.tunable())
        new = moved_copy(generator, moved_by)
    return Tuned(new, done, distance, lost if len(lost) < k else ())


def moved_copy(generator: Generator, delta: Mapping[str, Tensor]) -> Generator:
    """A copy with a delta added to its weights."""
    new: Generator = copy.deepcopy(generator).requires_grad_(False)  # type: ignore[attr-defined]
    deltas.apply(new, delta)
    return new


def adam(parameters: Sequence[Tensor], config: TuningConfig) -> torch.optim.Adam:
    """The optimiser of the weights; `fused` is one pass over each tensor (5 ms in place of 16 for 6.6 M on a core)."""
    return torch.optim.Adam(parameters, lr=config.lr, betas=(config.beta1, config.beta2), fused=True)


@torch.no_grad()
def pull_back(parameters: Sequence[Tensor], old: Sequence[Tensor], shares: Shares, pull: float) -> None:
    """Move parameters, in place, a share of the way back to the old ones: decoupled weight decay towards theta.

    Adam moves every weight by about its learning rate, whether it matters for the image or not. What does not matter
    goes back, and with it the drift of the rest of W, at no cost of drawing; what matters is renewed at every step.
    Along the directions of a basis the share is larger the more the rest of W sees of them (`Shares`).
    """
    if pull <= 0:
        return
    found = list(zip(parameters, old, shares.at(pull), strict=True))
    for p, q, share in found:
        if share is not None:
            p.lerp_(q.expand_as(p), share)
    if plain := [(p, q) for p, q, share in found if share is None]:
        torch._foreach_lerp_([p for p, _ in plain], [q for _, q in plain], pull)


def locality_places(
    generator: Generator, ws: Tensor, random: ImageRandom, config: LocalityConfig, bases: Bases | None, step: int
) -> list[Tensor]:
    """The points w_r of a step, as ws `[N, num_ws, w_dim]`: `config.samples` of them, or none where it has no term.

    Random numbers come from the CPU, and a GPU's work until then is waited for. So they are drawn where nothing is to
    be waited for: right after the images' LPIPS was read.
    """
    # From the first interval's end on: at step 0 both generators are the same, and the term has no gradient.
    if not (config.enabled and config.weight > 0 and step % config.interval == config.interval - 1):
        return []
    samples = (sample_w(generator, random) for _ in range(config.samples))
    return [interpolate(ws, bases.w_along(w_z) if bases else w_z, config.alpha).ws for w_z in samples]


def locality_weight(config: LocalityConfig) -> float:
    """What the loss at one point counts, so that samples and intervals change what is computed and not the sum."""
    return config.weight * config.interval / config.samples


def locality_loss(
    old: Generator,
    draw_new: Callable[[Tensor], Tensor],
    ws: Tensor,
    config: LocalityConfig,
    max_resolution: int,
    lpips: LPIPS,
) -> Tensor:
    """L_R `[N]` of the old and the new generator at points w_r, as ws `[N, num_ws, w_dim]` (equation 5)."""
    with torch.no_grad():
        before = old.synthesis(ws)
        features = lpips.features(area_downsample(before, max_resolution))
    after = draw_new(ws)
    loss = config.mse_weight * (after - before).square().mean(dim=(1, 2, 3))
    if config.lpips_weight > 0:
        distance = lpips.distance(lpips.features(area_downsample(after, max_resolution)), features)
        loss = loss + config.lpips_weight * distance
    return loss
