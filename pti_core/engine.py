"""One batch of images through the whole method: pivot, tuning, delta, measures; a status for every image.

The batch shares its pivot search; tuning is for one image (or one group of images) after the other. What goes wrong
with one image stays with it: it becomes a `Failure`, the others go on. Out of memory halves the batch.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from pti_core import deltas
from pti_core.config import RunConfig
from pti_core.generators.base import Generator
from pti_core.memory import keep_freed_memory
from pti_core.metrics import measure
from pti_core.perceptual import LPIPS, load_lpips
from pti_core.pivot import Pivots, find_pivots
from pti_core.sampling import WStatistics, seed_for, w_statistics
from pti_core.tuning import tune

Measures = dict[str, float | None]
Stage = Literal["pivot", "tuned", "stored"]


@dataclass(frozen=True)
class Target:
    """An image to invert."""

    image_id: str
    group: str  # images of a group share a generator in mode "multi"
    image: Tensor  # [C, H, W] in [-1, 1], the generator's resolution


@dataclass(frozen=True)
class Progress:
    """What the engine is doing now."""

    stage: Literal["pivot", "tuning"]
    step: int
    steps: int  # at most
    lpips: float  # mean over the images in work
    images: int  # images that this step works on
    share: float  # of the batch's whole work that is done, in [0, 1]


@dataclass(frozen=True)
class Inversion:
    """A finished image."""

    image_id: str
    owner: str  # of the delta: the image, or its group
    w: Tensor  # [slots, w_dim]
    noise: bytes
    measures: dict[Stage, Measures]
    pivot_steps: int
    tuning_steps: int
    pivot_seconds: float  # the image's share of its batch
    tuning_seconds: float
    seed: int


@dataclass(frozen=True)
class Delta:
    """The encoded weight delta of one image or group."""

    owner: str
    tensors: list[deltas.EncodedTensor]


@dataclass(frozen=True)
class Failure:
    """An image that could not be inverted."""

    image_id: str
    stage: str
    error: str
    message: str
    permanent: bool


OnProgress = Callable[[Progress], None]
Result = Inversion | Delta | Failure


class Engine:
    """A loaded generator, LPIPS and the statistics of W: made once, used for every batch."""

    def __init__(self, generator: Generator, config: RunConfig, device: str = "cpu") -> None:
        keep_freed_memory()
        self.device = torch.device(device)
        self.generator: Generator = generator.to(self.device).eval().requires_grad_(False)  # type: ignore[attr-defined]
        self.config = config

    @cached_property
    def lpips(self) -> LPIPS:
        """The perceptual distance of losses and measures."""
        return load_lpips(self.config.net, str(self.device))

    @cached_property
    def statistics(self) -> WStatistics:
        """Of the generator's W; the same for every batch, since the seed is fixed."""
        return w_statistics(self.generator, self.config.pivot.w_samples)

    def invert(self, targets: Sequence[Target], on_progress: OnProgress | None = None) -> Iterator[Result]:
        """Invert targets, in order: an `Inversion` or a `Failure` for each, and the `Delta` of each owner.

        In mode "multi" all targets of a group have to be in one call.
        """
        counter = _WorkCounter(self.config, len(targets), on_progress)
        found: dict[str, tuple[Target, Pivots, float]] = {}
        pending = [list(targets[i : i + self.config.batch]) for i in range(0, len(targets), self.config.batch)]
        while pending:
            batch = pending.pop(0)
            start = time.perf_counter()
            try:
                pivots = self._pivots(batch, counter)
            except torch.OutOfMemoryError as error:
                if len(batch) == 1:
                    yield _failure(batch[0], "pivot", error, permanent=False)
                    continue
                self._free_memory()
                half = len(batch) // 2
                pending[:0] = [batch[:half], batch[half:]]
                continue
            seconds = (time.perf_counter() - start) / len(batch)
            for i, target in enumerate(batch):
                pivot = pivots[i : i + 1]
                if not all(bool(torch.isfinite(x).all()) for x in (pivot.w, *pivot.noise)):
                    yield Failure(target.image_id, "pivot", "NotFinite", "the pivot diverged to NaN", permanent=True)
                    continue
                found[target.image_id] = (target, pivot, seconds)
        for owner, members in self._owners(found):
            yield from self._tune(owner, members, counter)

    def _owners(
        self, found: dict[str, tuple[Target, Pivots, float]]
    ) -> Iterator[tuple[str, list[tuple[Target, Pivots, float]]]]:
        """Who gets a generator of its own: every image, or every group."""
        owners: dict[str, list[tuple[Target, Pivots, float]]] = {}
        for image_id, member in found.items():
            owners.setdefault(member[0].group if self.config.mode == "multi" else image_id, []).append(member)
        yield from owners.items()

    def _pivots(self, batch: Sequence[Target], counter: _WorkCounter) -> Pivots:
        return find_pivots(
            self.generator,
            torch.stack([t.image for t in batch]).to(self.device),
            [seed_for(t.image_id, "pivot", self.config.seed) for t in batch],
            self.config.pivot,
            self.statistics,
            self.lpips,
            lambda step, lpips: counter.pivot(step, lpips),
        )

    def _tune(self, owner: str, members: list[tuple[Target, Pivots, float]], counter: _WorkCounter) -> Iterator[Result]:
        """Tune for an owner; its inversions and its delta, or a failure for each of its images."""
        images = torch.stack([t.image for t, _, _ in members]).to(self.device)
        pivots = Pivots(
            torch.cat([p.w for _, p, _ in members]),
            [torch.cat(maps) for maps in zip(*(p.noise for _, p, _ in members), strict=True)],
            self.generator.num_ws,
        )
        config, start = self.config, time.perf_counter()
        try:
            tuned = tune(
                self.generator,
                images,
                pivots,
                [seed_for(t.image_id, "tuning", config.seed) for t, _, _ in members],
                config.tuning,
                config.locality,
                self.lpips,
                lambda step, lpips: counter.tuning(step, lpips),
            )
            seconds = (time.perf_counter() - start) / len(members)
            delta = tuned.delta(self.generator)
            if not all(bool(torch.isfinite(d).all()) for d in delta.values()):
                for target, _, _ in members:
                    yield Failure(target.image_id, "tuning", "NotFinite", "the tuning diverged to NaN", permanent=True)
                return
            encoded = deltas.encode(delta, config.codec)
            noise = [deltas.encode_noise([n[i] for n in pivots.noise]) for i in range(len(members))]
            measures: dict[Stage, list[Measures]] = {
                "pivot": self._measure(self.generator, images, pivots),
                "tuned": self._measure(tuned.generator, images, pivots),
                "stored": self._measure(self.stored_generator(encoded), images, self._stored_pivots(pivots, noise)),
            }
        except torch.OutOfMemoryError as error:
            self._free_memory()
            for target, _, _ in members:
                yield _failure(target, "tuning", error, permanent=False)
            return
        finally:
            counter.tuned(len(members))
        for i, (target, pivot, pivot_seconds) in enumerate(members):
            yield Inversion(
                image_id=target.image_id,
                owner=owner,
                w=pivot.w[0].cpu(),
                noise=noise[i],
                measures={stage: rows[i] for stage, rows in measures.items()},
                pivot_steps=config.pivot.steps,
                tuning_steps=tuned.steps,
                pivot_seconds=pivot_seconds,
                tuning_seconds=seconds,
                seed=config.seed,
            )
        yield Delta(owner, encoded)

    def stored_generator(self, tensors: Sequence[deltas.EncodedTensor]) -> Generator:
        """A copy of the generator with a decoded delta added: what a reader of the tables gets."""
        generator = copy.deepcopy(self.generator)
        deltas.apply(generator, deltas.decode(tensors))
        return generator

    def _stored_pivots(self, pivots: Pivots, noise: Sequence[bytes]) -> Pivots:
        maps = [deltas.decode_noise(payload, self.generator.noise_shapes) for payload in noise]
        merged = [torch.cat(layer).to(self.device) for layer in zip(*maps, strict=True)]
        return Pivots(pivots.w, merged, pivots.num_ws)

    def _measure(self, generator: Generator, images: Tensor, pivots: Pivots) -> list[Measures]:
        rows: list[Measures] = []
        with torch.no_grad():
            for i in range(0, len(images), self.config.batch):
                part = pivots[i : i + self.config.batch]
                drawn = generator.synthesis(part.ws, noise=part.noise)
                rows += measure(images[i : i + self.config.batch], drawn, self.lpips)
        return rows

    def _free_memory(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


def _failure(target: Target, stage: str, error: Exception, permanent: bool) -> Failure:
    message = f"image_id {target.image_id!r}: out of memory even alone; use a smaller generator or a larger device"
    return Failure(target.image_id, stage, type(error).__name__, message, permanent)


class _WorkCounter:
    """Turns steps into the share of a batch's work, for the progress display."""

    def __init__(self, config: RunConfig, images: int, on_progress: OnProgress | None) -> None:
        self.config, self.images, self.on_progress = config, images, on_progress
        self.pivot_cost = config.pivot.steps
        regularised = 1 / config.locality.interval if config.locality.enabled else 0.0
        self.step_cost = 1.0 + 1.3 * regularised  # of a tuning step, in pivot steps; only the display depends on it
        self.total = images * (self.pivot_cost + config.tuning.steps * self.step_cost)
        self.pivots_done = self.tunings_done = 0

    def pivot(self, step: int, lpips: Tensor) -> None:
        n = len(lpips)
        work = (self.pivots_done + n * step / self.config.pivot.steps) * self.pivot_cost
        if step == self.config.pivot.steps:
            self.pivots_done += n
        self._report("pivot", step, self.config.pivot.steps, lpips, work)

    def tuning(self, step: int, lpips: Tensor) -> None:
        whole = self.config.tuning.steps * self.step_cost
        work = self.images * self.pivot_cost + self.tunings_done * whole + len(lpips) * step * self.step_cost
        self._report("tuning", step, self.config.tuning.steps, lpips, work)

    def tuned(self, images: int) -> None:
        self.tunings_done += images

    def _report(self, stage: Literal["pivot", "tuning"], step: int, steps: int, lpips: Tensor, work: float) -> None:
        if self.on_progress is not None:
            share = min(1.0, work / self.total)
            self.on_progress(Progress(stage, step, steps, float(lpips.mean()), len(lpips), share))
