"""The alpha study of a run's images, shard by shard; a part an image, what is there is not done again."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from threading import Lock
from typing import Final

import torch
from torch import Tensor

from pti_core import deltas, images
from pti_core.alpha.findings import label
from pti_core.alpha.stored import Place, Request, Rows, note_left_out, places, studied, write_study
from pti_core.alpha.strips import ends
from pti_core.alpha.study import OFF, AlphaError, drift, nearness, tuned_with
from pti_core.connections import OutOfResources
from pti_core.engine import Engine
from pti_core.machine.parallel import one_at_a_time
from pti_core.pivot import Pivots
from pti_core.runs import Run, engine_for
from pti_core.shard.shard_progress import OnShardProgress, ShardProgress

_TUNING: Final = 0.95  # share of tuning in an image's work; only the display depends on it


@dataclass(frozen=True)
class Studied:
    """What came of some images of a shard."""

    done: int  # in this call
    left_out: dict[str, str]  # why an image could not be studied, by image_id


def study_shard(
    run: Run,
    shard: int,
    ids: Sequence[str],
    request: Request,
    on_progress: OnShardProgress | None = None,
    before: int = 0,
    total: int | None = None,
) -> Studied:
    """Study images of one shard; write the tables `alpha_nearness` and `alpha_drift`, and a picture an image.

    An image that can no longer be read, is another than was inverted, or whose tuning diverges is left out.
    `on_progress` is told what is done to which of `total` images, the first of these after so many `before`.
    """
    engine = engine_for(run)
    there = places(run, {shard: ids})
    done = studied(run, there.values(), request)
    todo = [place for i, place in there.items() if i not in done]
    tell = _Teller(shard, ids, on_progress, before, len(ids) if total is None else total)
    for image_id in done:
        tell(image_id, 1.0, "reading")
    gone = [image_id for image_id in ids if image_id not in there]
    left_out = {i: f"image {i!r} has no pivot any more; the same `pti run` again finds it" for i in gone}
    made = 0
    with one_at_a_time(engine.device):
        # Before jobs: on a GPU the bases set how convolutions round, for the process. Images are tuned one by one.
        engine.prepare(0)
        work = partial(_study, run, engine, request, tell)
        for place, found in zip(todo, engine.in_parallel(work, todo), strict=True):
            if isinstance(found, str):
                left_out[place.image_id] = found
            else:
                write_study(run, place, request, found)
                made += 1
            tell(place.image_id, 1.0, f"wrote {tell.name(place.image_id)}")
    if left_out:
        note_left_out(run, shard, left_out)
    return Studied(made, left_out)


class _Teller:
    """Sums the shares of images that are studied at the same time, and says which one is at what."""

    def __init__(
        self, shard: int, ids: Sequence[str], on_progress: OnShardProgress | None, before: int, total: int
    ) -> None:
        self._shard, self._on_progress, self._total = shard, on_progress, total
        self._numbers = {image_id: before + i for i, image_id in enumerate(ids, 1)}
        self._shares = dict.fromkeys(ids, 0.0)
        self._lock = Lock()

    def name(self, image_id: str) -> str:
        """`image 3 of 12`."""
        return f"image {self._numbers[image_id]} of {self._total}"

    def __call__(self, image_id: str, share: float, doing: str) -> None:
        with self._lock:
            self._shares[image_id] = share
            if self._on_progress is not None:
                done = sum(self._shares.values())
                self._on_progress(ShardProgress(self._shard, done, len(self._shares), None, doing))


def _study(
    run: Run, engine: Engine, request: Request, tell: _Teller, place: Place, check: Callable[[], None]
) -> tuple[Rows, Rows] | str:
    """The rows of both tables; or why there are none."""
    image_id, generator, name = place.image_id, engine.generator, tell.name(place.image_id)
    tell(image_id, 0.0, f"reading {name}")
    try:
        target = _target(run, place, generator.img_resolution)
    except AlphaError as error:
        return str(error)
    w = torch.tensor(place.pivot["w"], dtype=torch.float32, device=engine.device).view(1, -1, generator.w_dim)
    noise = [n.to(engine.device) for n in deltas.decode_noise(place.pivot["noise"], generator)]
    pivots = Pivots(w, noise, generator.num_ws)
    alphas, samples = request.alphas, request.z_samples
    near = [asdict(row) for row in nearness(engine, pivots.ws, image_id, alphas, samples, run.config.seed)]
    drifts, tuned = [], {}
    tunings = [alpha for alpha in alphas if alpha == OFF or float(alpha) > 0]
    for i, alpha in enumerate(tunings):
        how = "without the regulariser" if alpha == OFF else f"with alpha {label(float(alpha))}"

        def on_step(step: int, i: int = i, how: str = how) -> None:
            check()
            share = _TUNING * (i + step / run.config.tuning.steps) / len(tunings)
            tell(image_id, share, f"tuning {name} {how}")

        on_step(0)
        tuned[alpha] = tuned_with(engine, target, pivots, image_id, alpha, on_step)
        if not all(bool(torch.isfinite(p).all()) for p in tuned[alpha].tunable().values()):
            return f"image {image_id!r}: tuning it {how} diverged to NaN; leave that alpha out"
        found = drift(engine, tuned[alpha], target, pivots, image_id, alpha, alphas, samples)
        drifts += [asdict(row) for row in found]
    tell(image_id, _TUNING, f"drawing {name}")
    picture = ends(engine, target, pivots, image_id, alphas, tuned)
    run.store.write_report(run.name, f"alpha/{strip_name(image_id)}", picture)
    return near, drifts


def _target(run: Run, place: Place, resolution: int) -> Tensor:
    """The image `[C, H, W]` in [-1, 1]. AlphaError for one that cannot be read, or is not the one that was inverted."""
    image_id = place.image_id
    try:
        found = run.read_input(place.pivot["uri"], image_id, resolution)
    except OutOfResources:  # the machine's fault
        raise
    except (images.ImageError, OSError) as error:
        raise AlphaError(f"image {image_id!r} cannot be read any more: {error}") from error
    if found.sha256 != place.pivot["sha256"]:
        raise AlphaError(f"image {image_id!r} has changed since it was inverted; `pti run --extend` inverts it anew")
    return torch.from_numpy(images.to_float(found.pixels[None]))[0]


def strip_name(image_id: str) -> str:
    """The file of an image's strips; one name an image, whatever characters it has."""
    return f"{re.sub(r'[^A-Za-z0-9._-]+', '_', image_id)[-60:]}-{hashlib.sha256(image_id.encode()).hexdigest()[:8]}.png"
