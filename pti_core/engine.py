"""One batch of images through the whole method: pivot, tuning, delta, measures; a status for every image.

On a CPU every core has an image of its own (see `parallel`). On a GPU as many images at once as cost least an image
there: they share a pivot search, and are tuned with stacked weights (`stacked`). What goes wrong with one image stays
with it: it becomes a `Failure`, the others go on. On a GPU, out of memory halves what is done at once; on a CPU no more
images are in work than memory has room for (`room`).
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property, partial
from threading import Lock, Semaphore
from typing import TypeVar

import torch
from torch import Tensor

from pti_core import deltas
from pti_core.bases import Bases, input_bases
from pti_core.config import RunConfig
from pti_core.encoder.network import Encoder
from pti_core.encoder.start import encoded_start
from pti_core.first_pass import first_pass
from pti_core.generators.base import Generator
from pti_core.generators.half import multiplies_bf16, precision_for
from pti_core.inversions import Failure, Found, Result, Target
from pti_core.machine.device import exact_float32, seconds_since
from pti_core.machine.malloc import keep_freed_memory
from pti_core.machine.out_of_memory import free_memory, halved, shortage
from pti_core.machine.parallel import available_cores, in_parallel, on_idle_cores, one_thread
from pti_core.machine.room import room_beside, too_small_for_one
from pti_core.perceptual import LPIPS, load_lpips
from pti_core.pivot import Pivots, find_pivots
from pti_core.progress import OnImageStep, OnProgress, WorkCounter
from pti_core.results import results_of
from pti_core.sampling import WStatistics, seed_for, w_statistics
from pti_core.stacked import tune_stack
from pti_core.tuning import Tuned, tune, tuned_names
from pti_core.widths import widths

_Owner = tuple[str, Sequence[Found]]  # whose delta it is, and its images
Item = TypeVar("Item")
Done = TypeVar("Done")


class Engine:
    """A loaded generator, LPIPS and the statistics of W: made once, used for every batch.

    With an `encoder` of this generator, the search for a pivot starts at what it gives; without one, at w_avg.
    """

    def __init__(
        self, generator: Generator, config: RunConfig, device: str = "cpu", encoder: Encoder | None = None
    ) -> None:
        self.device = torch.device(device)
        if self.device.type == "cpu":
            keep_freed_memory()
        try:
            moved = generator.to(self.device)  # type: ignore[attr-defined]
        except (RuntimeError, MemoryError) as error:
            raise too_small_for_one(error) from None
        self.generator: Generator = moved.eval().requires_grad_(False)
        precision = precision_for(config.precision, generator.kind, self.device)
        config = config.model_copy(update={"precision": precision})
        self.drawing = self.generator.with_precision(precision)  # the same weights; what is optimised through
        self.config = config
        tuned_names(self.generator, config.tuning.from_resolution)  # or a ValueError, before any work
        self.encoder = encoder.to(self.device) if encoder is not None else None
        self.at_once = 1 if self.device.type == "cpu" else config.batch  # images that are drawn together
        self._fits = self._stack_fits = config.batch  # less once memory was short
        self.stack = 1  # images that are tuned together, each with weights of its own
        self._making = Lock()
        self._room: Semaphore | None = None  # for jobs on a CPU, once a first image has shown what it takes
        self._prepared = False
        self._most = 0  # the widths that were tried on a GPU

    @cached_property
    def lpips(self) -> LPIPS:
        """The perceptual distance of measures."""
        return load_lpips(self.config.net, str(self.device))

    @cached_property
    def judge(self) -> LPIPS:
        """The perceptual distance of losses: in half precision where drawing is and the processor multiplies bf16."""
        half = self.config.precision != "fp32" and multiplies_bf16(self.device)
        return self.lpips.in_half_precision() if half else self.lpips

    @cached_property
    def statistics(self) -> WStatistics:
        """Of the generator's W; the same for every batch, since the seed is fixed."""
        with one_thread(self.device):  # as in jobs, or the number of cores could change a bit
            return w_statistics(self.generator, self.config.pivot.w_samples)

    @cached_property
    def bases(self) -> Bases | None:
        """The directions that tuning works along; None for those of single weights."""
        if self.config.tuning.basis != "inputs":
            return None
        with exact_float32(self.device):
            return input_bases(self.generator, self.statistics.samples)

    def prepare(self, count: int | None = None) -> None:
        """Make what jobs share, once where several shards begin together; see `first_pass` and `widths`.

        On a GPU, where what is worth doing together is found by trying: for so many images, as long as no more come;
        None for as many as a part may have. UnfitMachine where there is not memory enough for one image alone.
        """
        most = min(self.config.batch, count or self.config.batch)
        with self._making:
            if self._prepared and (self.device.type == "cpu" or most <= self._most):
                return
            try:
                shared = (self.drawing, self.config, self.statistics, self.judge)
                bases = self.bases
            except (RuntimeError, MemoryError) as error:
                raise too_small_for_one(error) from None
            if self.device.type == "cpu":  # an image a core is best there

                def alone() -> None:
                    list(
                        in_parallel(lambda _, check: first_pass(*shared, self.lpips, bases, check), [None], self.device)
                    )

                self._room = Semaphore(room_beside(alone, available_cores()))
            else:
                together, stack = widths(*shared, bases, self.device, most)
                self.at_once, self.stack = min(together, self._fits), min(stack, self._stack_fits)
                self._most = most
            self._prepared = True

    def draw_at_most(self, width: int) -> None:
        """Memory was short: from now on no more images than so many are drawn together."""
        self._fits = min(self._fits, max(1, width))
        self.at_once = min(self.at_once, self._fits)

    def with_steps(self, pivot: int, tuning: int) -> Engine:
        """The same method with so many steps, and all that this engine has prepared: for a GPU's first use of it."""
        self.prepare()
        other, config = copy.copy(self), self.config
        steps = {"pivot": pivot, "tuning": tuning}
        parts = {name: getattr(config, name).model_copy(update={"steps": n}) for name, n in steps.items()}
        other.config = config.model_copy(update=parts)
        return other

    def in_parallel(
        self,
        function: Callable[[Item, Callable[[], None]], Done],
        items: Sequence[Item],
        cost: Callable[[Item], float] | None = None,
    ) -> Iterator[Done]:
        """See `parallel.in_parallel`: jobs on this device; after `prepare`, as many as memory has room for on a CPU.

        (What only draws takes a fraction of what tuning takes, so it needs no `prepare`.)
        """
        return in_parallel(function, items, self.device, cost, self._room)

    def invert(
        self,
        targets: Sequence[Target],
        on_progress: OnProgress | None = None,
        on_step: OnImageStep | None = None,
    ) -> Iterator[Result]:
        """Invert targets, in order: an `Inversion` or a `Failure` for each, and the `Delta` of each owner.

        In mode "multi" all targets of a group have to be in one call.
        """
        counter = WorkCounter(self.config, len(targets), on_progress, on_step)
        self.prepare(len(targets))
        batches = [targets[i : i + self.at_once] for i in range(0, len(targets), self.at_once)]
        owners: dict[str, list[Found]] = {}
        for found in self.in_parallel(partial(self._pivots, counter), batches):
            for one in found:
                if isinstance(one, Failure):
                    yield one
                else:
                    owner = self.config.owner(one.target.image_id, one.target.group)
                    owners.setdefault(owner, []).append(one)
        found_owners, size = list(owners.items()), 1 if self.config.mode == "multi" else self.stack
        jobs = [found_owners[i : i + size] for i in range(0, len(found_owners), size)]
        for results in self.in_parallel(partial(self._tune, counter), jobs, expected_cost):
            yield from results

    def _pivots(
        self, counter: WorkCounter, batch: Sequence[Target], check: Callable[[], None]
    ) -> list[Found | Failure]:
        """The pivots of a batch; halves it, and those of later parts, as long as it does not fit into memory."""
        try:
            return self._search(counter, batch, check)
        except (RuntimeError, MemoryError) as error:
            short = shortage(error)
        free_memory(self.device)  # only here: the error held the frames of what failed, and they their tensors
        if len(batch) == 1:
            return [Failure.out_of_memory(batch[0], "pivot", short)]
        half = len(batch) // 2
        self.draw_at_most(half)
        return self._pivots(counter, batch[:half], check) + self._pivots(counter, batch[half:], check)

    def _search(
        self, counter: WorkCounter, batch: Sequence[Target], check: Callable[[], None]
    ) -> list[Found | Failure]:
        distance, ids = torch.zeros(len(batch)), [target.image_id for target in batch]

        def on_step(step: int, lpips: Tensor) -> None:
            check()
            distance.copy_(lpips)
            counter.step("pivot", ids[0], ids, step, lpips)

        start = time.perf_counter()
        images = torch.stack([t.image for t in batch]).to(self.device)
        pivots = find_pivots(
            self.drawing,
            images,
            [seed_for(t.image_id, "pivot", self.config.seed) for t in batch],
            self.config.pivot,
            self.statistics,
            self.judge,
            on_step,
            encoded_start(self.encoder, self.generator, images, self.lpips) if self.encoder else None,
        )
        seconds = seconds_since(start, self.device) / len(batch)

        found = [torch.isfinite(x).flatten(1).all(dim=1) for x in (pivots.w, *pivots.noise)]
        finite = torch.stack(found).all(dim=0).tolist()  # read once

        def result(i: int) -> Found | Failure:
            pivot = pivots[i : i + 1]
            if finite[i]:
                return self._as_stored(batch[i], pivot, float(distance[i]), seconds)
            way_out = f"a pivot.lr below {self.config.pivot.lr:g} may help (a new run)"
            message = f"image_id {ids[i]!r}: the search of its pivot diverged to NaN; {way_out}"
            return Failure(ids[i], "pivot", "NotFinite", message, permanent=True)

        return list(on_idle_cores(result, range(len(batch)), self.device))

    def _as_stored(self, target: Target, pivot: Pivots, lpips: float, seconds: float) -> Found:
        noise = deltas.encode_noise([n[0] for n in pivot.noise], self.generator)
        maps = [n.to(self.device) for n in deltas.decode_noise(noise, self.generator)]
        return Found(target, replace(pivot, noise=maps), noise, lpips, seconds)

    def _tune(
        self, counter: WorkCounter, job: Sequence[_Owner], check: Callable[[], None], at_once: int | None = None
    ) -> list[Result]:
        """Tune for owners: their inversions and deltas, or a failure for each image.

        What does not fit into memory is done by halves, in later parts from the start: a stack's owners, or the images
        of a group that are drawn at once, whose gradients add up.
        """
        at_once = at_once or self.at_once
        count = sum(len(members) for _, members in job)
        try:
            return self._tuned(counter, job, check, at_once)
        except (RuntimeError, MemoryError) as error:
            short = shortage(error)
        finally:
            for owner, members in job:
                counter.finish(owner, len(members))
        free_memory(self.device)
        if len(job) > 1:
            half = len(job) // 2
            self.stack = self._stack_fits = min(self.stack, half)
            return self._tune(counter, job[:half], check) + self._tune(counter, job[half:], check)
        if min(at_once, count) > 1:
            self.draw_at_most(min(at_once, count) // 2)
            return self._tune(counter, job, check, min(at_once, count) // 2)
        return [Failure.out_of_memory(m.target, "tuning", short) for m in job[0][1]]

    def _tuned(
        self, counter: WorkCounter, job: Sequence[_Owner], check: Callable[[], None], at_once: int
    ) -> list[Result]:
        start = time.perf_counter()
        tuned = self._optimise(counter, job, check, at_once)
        seconds = seconds_since(start, self.device) / sum(len(members) for _, members in job)
        results: list[Result] = []
        for (owner, members), one in zip(job, tuned, strict=True):
            # Of its own: what is tuned is not tuned again because its delta, in float32, did not fit beside the rest.
            of_one = partial(self._results, owner, members, one, seconds)
            results += halved(of_one, min(at_once, len(members)), self.device)[0]
        return results

    def _optimise(
        self, counter: WorkCounter, job: Sequence[_Owner], check: Callable[[], None], at_once: int
    ) -> list[Tuned]:
        """One tuned generator for each owner."""
        config, members = self.config, [m for _, found in job for m in found]
        ids = [m.target.image_id for m in members]

        def on_step(step: int, lpips: Tensor) -> None:
            check()
            counter.step("tuning", job[0][0], ids, step, lpips)

        images, pivots = self._together(members)
        seeds = [seed_for(name, "tuning", config.seed) for name in ids]
        common = (self.drawing, images, pivots, seeds, config.tuning, config.locality, self.judge, on_step)
        return tune_stack(*common, self.bases) if len(job) > 1 else [tune(*common, at_once, self.bases)]

    def _results(
        self, owner: str, members: Sequence[Found], tuned: Tuned, seconds: float, at_once: int
    ) -> list[Result]:
        """The rows of an owner whose generator is tuned."""
        return results_of(self, owner, members, *self._together(members), tuned, seconds, at_once)

    def _together(self, members: Sequence[Found]) -> tuple[Tensor, Pivots]:
        """Targets and pivots of several images as one batch."""
        images = torch.stack([m.target.image for m in members]).to(self.device)
        noise = [torch.cat(maps) for maps in zip(*(m.pivot.noise for m in members), strict=True)]
        return images, Pivots(torch.cat([m.pivot.w for m in members]), noise, self.generator.num_ws)

    def stored_generator(self, tensors: Sequence[deltas.EncodedTensor]) -> Generator:
        """A copy of the generator with a decoded delta added: what a reader of the tables gets."""
        generator = copy.deepcopy(self.generator)
        deltas.apply(generator, deltas.decode(tensors, deltas.shapes_of(generator)))
        return generator


def expected_cost(job: Sequence[_Owner]) -> float:
    """Grows with the steps that tuning will take: an image that its pivot draws well has its end early."""
    return sum(member.lpips for _, members in job for member in members)
