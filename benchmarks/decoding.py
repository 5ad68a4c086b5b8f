"""How long one image's delta takes to decode: wall time, and CPU time of all threads.

    python -m benchmarks.decoding                  # made-up deltas, for generators of three sizes
    python -m benchmarks.decoding out/mobile       # the deltas of finished runs

Made-up deltas have a hundred components in every kernel, whose sizes fall as those of tuned kernels do, and noise as
large as all of them.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from flows.errors import one_sentence
from pti_core import deltas
from pti_core.deltas import table
from pti_core.generators.base import Generator
from pti_core.generators.checkpoints import load_generator
from pti_core.generators.mobilestylegan import MobileStyleGAN
from pti_core.generators.stylegan2 import StyleGAN2
from pti_core.presets import configure
from pti_core.runs import encoded_tensors, find_run
from pti_core.tables import records
from pti_core.tuning import tuned_names

TUNED_FROM = configure("fast").tuning.from_resolution
HEAD = (
    "| what | values | codec | KB | least ms | median ms | least CPU ms |\n"
    "| --- | ---: | --- | ---: | ---: | ---: | ---: |"
)

Rows = list[deltas.EncodedTensor]


def like_tuned(value: Tensor, random: torch.Generator) -> Tensor:
    """A made-up delta of a kernel's shape: components whose sizes fall as those of real ones do, and noise."""
    if value.ndim < 2:
        return torch.randn(value.shape, generator=random) * 6e-3
    rows, columns = value.shape[0], value[0].numel()
    rank = min(100, rows, columns)
    sizes = 1 / torch.arange(1, rank + 1) ** 0.7
    strong = torch.randn(rows, rank, generator=random) * sizes @ torch.randn(rank, columns, generator=random)
    return ((strong / strong.std() + torch.randn(strong.shape, generator=random)) * 4e-3).reshape(value.shape)


def line(what: str, codec: str, images: Sequence[Rows], shapes: Mapping[str, tuple[int, ...]], repeats: int) -> str:
    """A row of the table: the median image's size and least time, and the median of all."""
    least, least_cpu, walls = [], [], []
    for rows in images:
        wall, cpu = [], []
        for _ in range(repeats):
            start, worked = time.perf_counter(), time.process_time()
            deltas.decode(rows, shapes)
            wall.append(1e3 * (time.perf_counter() - start))
            cpu.append(1e3 * (time.process_time() - worked))
        least.append(min(wall))
        least_cpu.append(min(cpu))
        walls += wall
    kb = statistics.median(sum(len(row.payload) for row in rows) for rows in images) / 1e3
    values = sum(torch.Size(row.shape).numel() for row in images[0] if row.payload) / 1e6
    return (
        f"| {what} | {values:.1f} M | {codec} | {kb:.0f} | {statistics.median(least):.0f} "
        f"| {statistics.median(walls):.0f} | {statistics.median(least_cpu):.0f} |"
    )


def of_run(root: str, repeats: int) -> Iterator[str]:
    """The newest finished run below a root: a row for each codec that its images have."""
    run = find_run(root)
    shapes = deltas.shapes_of(load_generator(run.generator).generator)
    owners: dict[str, Rows] = {}
    for row in records(run.store.read("deltas", run=run.name)):
        owners.setdefault(row["owner"], []).extend(encoded_tensors([row], run.generator_sha256))
    kinds: dict[str, list[Rows]] = {}
    for rows in owners.values():
        kinds.setdefault(rows[0].codec, []).append(rows)
    for codec, images in kinds.items():
        yield line(f"{root}, {len(images)} images", codec, images, shapes, repeats)


def made_up(repeats: int) -> Iterator[str]:
    """Deltas of what `fast` tunes, of three generators."""
    made: dict[str, Generator] = {
        "pocket-ffhq-128": load_generator("pocket-ffhq-128").generator,
        "mobile-ffhq, 1024": MobileStyleGAN([512, 512, 512, 512, 512, 256, 128, 64]),
        "StyleGAN2 config-f, 1024": StyleGAN2(512, 0, 512, 1024),
    }
    for name, generator in made.items():
        generator.requires_grad_(False)  # type: ignore[attr-defined]
        random = torch.Generator().manual_seed(0)
        tuned = tuned_names(generator, TUNED_FROM)
        delta = {
            key: like_tuned(p, random) if key in tuned else torch.zeros_like(p)
            for key, p in generator.tunable().items()
        }
        rows = {codec: deltas.encode(delta, codec) for codec in ("fp16", "int8")}
        for coarse in (1.0, 2.0):
            rows[f"adaptive, step {coarse} rms"] = [
                deltas.EncodedTensor(key, tuple(v.shape), "adaptive", *table.adaptive_encode(v.numpy(), coarse))
                for key, v in delta.items()
            ]
        for codec, encoded in rows.items():
            yield line(name, codec, [encoded], deltas.shapes_of(generator), repeats)


def main() -> None:
    """Parse the arguments, print the table line by line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("roots", nargs="*", help="outputs of finished runs; without, made-up deltas")
    parser.add_argument("--repeats", type=int, default=15, help="of each decoding")
    args = parser.parse_args()
    print(HEAD)
    for found in [of_run(root, args.repeats) for root in args.roots] or [made_up(args.repeats)]:
        for text in found:
            print(text, flush=True)


if __name__ == "__main__":
    with one_sentence():
        main()
