"""How many operators a step sends, and an image's results: what a GPU is bound by where images are few and small.

Counted on any machine:

    python -m benchmarks.operators                         # a Markdown table, some minutes

Of an untrained StyleGAN2 with narrow layers, since their width changes no count. Views and new tensors do not count:
no device does anything for them.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from flows.errors import one_sentence
from pti_core.engine import Engine
from pti_core.generators.stylegan2 import StyleGAN2
from pti_core.inversions import Found, Target
from pti_core.pivot import find_pivots
from pti_core.presets import configure
from pti_core.results import results_of
from pti_core.stacked import tune_stack
from pti_core.tuning import tune

_NAMES = """
    _local_scalar_dense _reshape_alias _unsafe_view alias as_strided detach diagonal empty empty_like empty_strided
    expand is_same_size lift_fresh movedim new_empty new_empty_strided permute resize_ select slice split
    split_with_sizes squeeze t transpose unbind unfold unsqueeze view
"""
FREE = frozenset(_NAMES.split())


class Operators(TorchDispatchMode):
    """Counts what is sent while in force, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.sent: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = func._schema.name.partition("::")[2]
        if name not in FREE:
            self.sent[name] += 1
        return func(*args, **(kwargs or {}))


def a_step(work: Callable[[int], object], steps: int) -> float:
    """Operators of a step of `work(steps)`, by the mean of so many after the first ones."""

    def total(count: int) -> int:
        with Operators() as operators:
            work(count)
        return operators.sent.total()

    return (total(2 * steps) - total(steps)) / steps


def counts(resolution: int, images: int, preset: str) -> dict[str, float]:
    """Operators a step of the search, of tuning one image, and of a stack; and all for an image's results."""
    torch.manual_seed(0)
    kwargs = {"channel_base": 8 * resolution, "channel_max": 64}
    generator = StyleGAN2(512, 0, 512, resolution, 3, {"num_layers": 8}, kwargs).eval().requires_grad_(False)
    config = configure(preset, {"pivot.w_samples": 200, "precision": "fp32"})
    engine = Engine(generator, config)
    targets, seeds = torch.rand(images, 3, resolution, resolution) * 2 - 1, list(range(images))

    def search(steps: int) -> Any:
        settings = config.pivot.model_copy(update={"steps": steps})
        return find_pivots(engine.drawing, targets, seeds, settings, engine.statistics, engine.judge)

    pivots = search(1)

    def tuning(count: int, way: Callable[..., Any]) -> Callable[[int], Any]:
        def work(steps: int) -> Any:
            settings = config.tuning.model_copy(update={"steps": steps, "stop_lpips": 0.0, "lr_rampdown": 0.0})
            common = (engine.drawing, targets[:count], pivots[:count], seeds[:count], settings, config.locality)
            return way(*common, engine.judge, bases=engine.bases)

        return work

    steps = 2 * config.locality.interval
    tuned = tuning(1, tune)(2)
    member = Found(Target("0", "0", targets[0]), pivots[:1], b"", 0.0, 0.0)
    engine.lpips  # noqa: B018  (loaded before anything is counted)
    with Operators() as results:
        results_of(engine, "0", [member], targets[:1], pivots[:1], tuned, 0.0, 1)
    return {
        f"search of {images} images": a_step(search, 2),
        "tuning of one image": a_step(tuning(1, tune), steps),
        f"tuning of {images} images in a stack": a_step(tuning(images, tune_stack), steps),
        "results of one image, in all": results.sent.total(),
    }


def main() -> None:
    """Parse the arguments, count, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--resolution", type=int, default=256)
    parser.add_argument("--images", type=int, default=2)
    parser.add_argument("--preset", default="fast")
    args = parser.parse_args()
    print("| a step | operators |\n| --- | ---: |")
    for name, count in counts(args.resolution, args.images, args.preset).items():
        print(f"| {name} | {count:,.0f} |")


if __name__ == "__main__":
    with one_sentence():
        main()
