"""What is made once for all batches of images, and a batch's way through the method: pivot, tuning, delta, measures.

On a CPU every core has an image of its own (see `parallel`). On a GPU as many images at once as cost least an image
there: they share a pivot search, and are tuned with stacked weights (`stacked`). What goes wrong with one image stays
with it: it becomes a `Failure`, the others go on. On a GPU, out of memory halves what is done at once; on a CPU no more
images are in work than memory has room for (`room`).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from threading import Lock, Semaphore
from typing import TypeVar

import torch

from pti_core import deltas
from pti_core.bases import Bases, input_bases
from pti_core.batches import find_all, tune_all
from pti_core.config import RunConfig
from pti_core.encoder.network import Encoder
from pti_core.first_pass import first_pass
from pti_core.generators.base import Generator
from pti_core.generators.half import multiplies_bf16, precision_for
from pti_core.inversions import Failure, Found, Result, Target
from pti_core.machine.device import exact_float32
from pti_core.machine.malloc import keep_freed_memory
from pti_core.machine.out_of_memory import halved
from pti_core.machine.parallel import available_cores, in_parallel, one_thread
from pti_core.machine.room import room_beside, too_small_for_one
from pti_core.perceptual import LPIPS, load_lpips
from pti_core.progress import OnImageStep, OnProgress, WorkCounter
from pti_core.sampling import WStatistics, w_statistics
from pti_core.tuning import tuned_names
from pti_core.widths import widths

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
        self._most = 0  # images for which the widths of a GPU are known

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
        # One thread as in jobs, or the number of cores could change a bit.
        with one_thread(self.device), exact_float32(self.device):
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

        On a GPU what is worth doing together is found by trying: for so many images, up to the next power of two, and
        anew once more come, unless wider was seen not to be worth it; None for as many as a part may have, 0 where
        nothing is done together. UnfitMachine where there is not memory enough for one image alone.
        """
        most = self.config.batch
        if count is not None:
            most = min(most, 1 << (count - 1).bit_length() if count else 0)
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
            elif most:
                found = widths(*shared, bases, self.device, most)
                self.at_once, self.stack = min(found.search, self._fits), min(found.stack, self._stack_fits)
                self._most = self.config.batch if found.ended else most
            self._prepared = True

    def draw_at_most(self, width: int) -> None:
        """Memory was short: from now on no more images than so many are drawn together."""
        self._fits = min(self._fits, max(1, width))
        self.at_once = min(self.at_once, self._fits)

    def drawn_at_once(self, draw: Callable[[int], Done]) -> Done:
        """`draw(at_once)`; with half as many as long as memory is short, as later ones begin then."""
        asked = self.at_once
        drawn, fitted = halved(draw, asked, self.device)
        if fitted < asked:
            self.draw_at_most(fitted)  # or each image would find it anew, by failing first
        return drawn

    def tune_at_most(self, width: int) -> None:
        """Memory was short: from now on no more images than so many are tuned in a stack."""
        self._stack_fits = min(self._stack_fits, max(1, width))
        self.stack = min(self.stack, self._stack_fits)

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
        owners: dict[str, list[Found]] = {}
        for one in find_all(self, counter, targets):
            if isinstance(one, Failure):
                yield one
            else:
                owners.setdefault(self.config.owner(one.target.image_id, one.target.group), []).append(one)
        together = 1 if self.config.mode == "multi" else self.stack
        for results in tune_all(self, counter, list(owners.items()), together):
            yield from results

    def stored_generator(self, tensors: Sequence[deltas.EncodedTensor]) -> Generator:
        """A copy of the generator with a decoded delta added: what a reader of the tables gets."""
        generator = copy.deepcopy(self.generator)
        deltas.apply(generator, deltas.decode(tensors, deltas.shapes_of(generator)))
        return generator
