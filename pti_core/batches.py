"""The work on a batch with what an engine has made once: pivots, tuning, results, each in less memory where it must.

What does not fit into memory is done by halves from the start, and the engine is told, so that later batches begin
smaller.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pti_core import deltas
from pti_core.encoder.start import encoded_start
from pti_core.inversions import Failure, Found, Result, Target
from pti_core.machine.device import seconds_since
from pti_core.machine.out_of_memory import free_memory, halved, shortage
from pti_core.machine.parallel import on_idle_cores
from pti_core.pivot import Pivots, find_pivots
from pti_core.progress import WorkCounter
from pti_core.results import results_of
from pti_core.sampling import seed_for
from pti_core.stacked import tune_stack
from pti_core.tuning import Tuned, tune

if TYPE_CHECKING:
    from pti_core.engine import Engine

Owner = tuple[str, Sequence[Found]]
"""Whose delta it is, and its images."""


def find_all(engine: Engine, counter: WorkCounter, targets: Sequence[Target]) -> Iterator[Found | Failure]:
    """The pivots of targets, in order, as many searched together as the prepared engine draws at once."""
    batches = [targets[i : i + engine.at_once] for i in range(0, len(targets), engine.at_once)]
    for found in engine.in_parallel(partial(find, engine, counter), batches):
        yield from found


def tune_all(
    engine: Engine, counter: WorkCounter, owners: Sequence[Owner], together: int = 1
) -> Iterator[list[Result]]:
    """What comes of each owner, in order, `together` of them in a stack (see `tune_owners`).

    A stack is of those whose tuning is expected to end at about the same step, since its places are all drawn until a
    quarter of them has ended.
    """
    order = list(range(len(owners)))
    if together > 1:
        order.sort(key=lambda i: -expected_cost([owners[i]]))
    cut = [order[i : i + together] for i in range(0, len(order), together)]
    jobs = [[owners[i] for i in numbers] for numbers in cut]
    done: dict[int, list[Result]] = {}
    told = 0
    tuned = engine.in_parallel(partial(tune_owners, engine, counter), jobs, expected_cost)
    for numbers, of_job in zip(cut, tuned, strict=True):
        done.update(zip(numbers, of_job, strict=True))
        while told in done:
            yield done.pop(told)
            told += 1


def expected_cost(job: Sequence[Owner]) -> float:
    """Grows with the steps that tuning will take: an image that its pivot draws well has its end early."""
    return sum(member.lpips for _, members in job for member in members)


def find(
    engine: Engine, counter: WorkCounter, batch: Sequence[Target], check: Callable[[], None]
) -> list[Found | Failure]:
    """The pivots of a batch; halves it, and those of later parts, as long as it does not fit into memory."""
    if len(batch) > (most := engine.at_once):  # memory has been short since it was cut
        parts = [batch[i : i + most] for i in range(0, len(batch), most)]
        return [one for part in parts for one in find(engine, counter, part, check)]
    try:
        return _search(engine, counter, batch, check)
    except (RuntimeError, MemoryError) as error:
        short = shortage(error)
    free_memory(engine.device)  # only here: the error held the frames of what failed, and they their tensors
    if len(batch) == 1:
        return [Failure.out_of_memory(batch[0], "pivot", short)]
    engine.draw_at_most(len(batch) // 2)
    return find(engine, counter, batch, check)


def _search(
    engine: Engine, counter: WorkCounter, batch: Sequence[Target], check: Callable[[], None]
) -> list[Found | Failure]:
    distance, ids = torch.zeros(len(batch)), [target.image_id for target in batch]
    config = engine.config

    def on_step(step: int, lpips: Tensor) -> None:
        check()
        distance.copy_(lpips)
        counter.step("pivot", ids[0], ids, step, lpips)

    start = time.perf_counter()
    images = torch.stack([t.image for t in batch]).to(engine.device)
    pivots = find_pivots(
        engine.drawing,
        images,
        [seed_for(t.image_id, "pivot", config.seed) for t in batch],
        config.pivot,
        engine.statistics,
        engine.judge,
        on_step,
        encoded_start(engine.encoder, engine.generator, images, engine.lpips) if engine.encoder else None,
    )
    seconds = seconds_since(start, engine.device) / len(batch)

    found = [torch.isfinite(x).flatten(1).all(dim=1) for x in (pivots.w, *pivots.noise)]
    finite = torch.stack(found).all(dim=0).tolist()  # read once

    def result(i: int) -> Found | Failure:
        if finite[i]:
            return as_stored(engine, batch[i], pivots[i : i + 1], float(distance[i]), seconds)
        way_out = f"a pivot.lr below {config.pivot.lr:g} may help (a new run)"
        message = f"image_id {ids[i]!r}: the search of its pivot diverged to NaN; {way_out}"
        return Failure(ids[i], "pivot", "NotFinite", message, permanent=True)

    return list(on_idle_cores(result, range(len(batch)), engine.device))


def as_stored(engine: Engine, target: Target, pivot: Pivots, lpips: float, seconds: float) -> Found:
    """A target with its pivot, its noise maps as the tables hold them; `lpips` and `seconds` of the search."""
    noise = deltas.encode_noise([n[0] for n in pivot.noise], engine.generator)
    maps = [n.to(engine.device) for n in deltas.decode_noise(noise, engine.generator)]
    return Found(target, replace(pivot, noise=maps), noise, lpips, seconds)


def tune_owners(
    engine: Engine, counter: WorkCounter, job: Sequence[Owner], check: Callable[[], None]
) -> list[list[Result]]:
    """Tune for owners together: of each its inversions and delta, or a failure for each image.

    What does not fit into memory is done by halves, in later parts from the start: a stack's owners, or the images of a
    group that are drawn at once, whose gradients add up.
    """
    if len(job) > (most := engine.stack):
        parts = [job[i : i + most] for i in range(0, len(job), most)]
        return [results for part in parts for results in tune_owners(engine, counter, part, check)]
    at_once = min(engine.at_once, sum(len(members) for _, members in job))
    try:
        return _tuned(engine, counter, job, check, at_once)
    except (RuntimeError, MemoryError) as error:
        short = shortage(error)
    finally:
        for owner, members in job:
            counter.finish(owner, len(members))
    free_memory(engine.device)
    if len(job) > 1:
        engine.tune_at_most(len(job) // 2)
        return tune_owners(engine, counter, job, check)
    if at_once > 1:
        engine.draw_at_most(at_once // 2)
        return tune_owners(engine, counter, job, check)
    return [[Failure.out_of_memory(m.target, "tuning", short) for m in job[0][1]]]


def _tuned(
    engine: Engine, counter: WorkCounter, job: Sequence[Owner], check: Callable[[], None], at_once: int
) -> list[list[Result]]:
    start = time.perf_counter()
    tuned = _optimise(engine, counter, job, check, at_once)
    seconds = seconds_since(start, engine.device) / sum(len(members) for _, members in job)

    if lost := tuned[0].lost:  # of a group; in a stack each has weights of its own
        del tuned
        (owner, members), way_out = job[0], f"a tuning.lr below {engine.config.tuning.lr:g} may help (a new run)"
        why = f"its loss in the tuning of {owner!r} became NaN, and the others are tuned without it; {way_out}"
        names = [members[i].target.image_id for i in lost]
        failures = [Failure(n, "tuning", "NotFinite", f"image_id {n!r}: {why}", permanent=True) for n in names]
        rest = [member for i, member in enumerate(members) if i not in lost]
        return [[*failures, *tune_owners(engine, counter, [(owner, rest)], check)[0]]]

    def results(owner: str, members: Sequence[Found], one: Tuned) -> list[Result]:
        def of_one(at_once: int) -> list[Result]:
            return results_of(engine, owner, members, *_together(engine, members), one, seconds, at_once)

        # Of its own: what is tuned is not tuned again because its delta, in float32, did not fit beside the rest.
        return halved(of_one, min(at_once, len(members)), engine.device)[0]

    return [results(*owner, one) for owner, one in zip(job, tuned, strict=True)]


def _optimise(
    engine: Engine, counter: WorkCounter, job: Sequence[Owner], check: Callable[[], None], at_once: int
) -> list[Tuned]:
    """One tuned generator for each owner."""
    config, members = engine.config, [m for _, found in job for m in found]
    ids = [m.target.image_id for m in members]

    def on_step(step: int, lpips: Tensor) -> None:
        check()
        counter.step("tuning", job[0][0], ids, step, lpips)

    images, pivots = _together(engine, members)
    seeds = [seed_for(name, "tuning", config.seed) for name in ids]
    common = (engine.drawing, images, pivots, seeds, config.tuning, config.locality, engine.judge, on_step)
    return tune_stack(*common, engine.bases) if len(job) > 1 else [tune(*common, at_once, engine.bases)]


def _together(engine: Engine, members: Sequence[Found]) -> tuple[Tensor, Pivots]:
    """Targets and pivots of several images as one batch."""
    images = torch.stack([m.target.image for m in members]).to(engine.device)
    noise = [torch.cat(maps) for maps in zip(*(m.pivot.noise for m in members), strict=True)]
    return images, Pivots(torch.cat([m.pivot.w for m in members]), noise, engine.generator.num_ws)
