"""How long one image's delta takes to decode, for generators of three sizes: wall time, and CPU time of all threads.

    python benchmarks/decoding.py

Deltas are made up: components whose sizes fall as those of tuned kernels do, and noise as large as all of them.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from torch import Tensor

from pti_core import deltas
from pti_core.deltas import table
from pti_core.generators.base import Generator
from pti_core.generators.checkpoints import load_generator
from pti_core.generators.mobilestylegan import MobileStyleGAN
from pti_core.generators.stylegan2 import StyleGAN2
from pti_core.presets import configure
from pti_core.tuning import tuned_names

TUNED_FROM = configure("fast").tuning.from_resolution


def like_tuned(value: Tensor, random: torch.Generator) -> Tensor:
    """A made-up delta of a kernel's shape: components whose sizes fall as those of real ones do, and noise."""
    if value.ndim < 2:
        return torch.randn(value.shape, generator=random) * 6e-3
    rows, columns = value.shape[0], value[0].numel()
    rank = min(100, rows, columns)
    sizes = 1 / torch.arange(1, rank + 1) ** 0.7
    strong = torch.randn(rows, rank, generator=random) * sizes @ torch.randn(rank, columns, generator=random)
    return ((strong / strong.std() + torch.randn(strong.shape, generator=random)) * 4e-3).reshape(value.shape)


def decoding(repeats: int) -> str:
    """The times as a Markdown table."""
    made: dict[str, Generator] = {
        "pocket-ffhq-128": load_generator("pocket-ffhq-128").generator,
        "mobile-ffhq, 1024": MobileStyleGAN([512, 512, 512, 512, 512, 256, 128, 64]),
        "StyleGAN2 config-f, 1024": StyleGAN2(512, 0, 512, 1024),
    }
    text = "| generator | tuned values | codec | KB | least ms | median ms | least CPU ms |\n"
    text += "| --- | ---: | --- | ---: | ---: | ---: | ---: |\n"
    for name, generator in made.items():
        generator.requires_grad_(False)  # type: ignore[attr-defined]
        random = torch.Generator().manual_seed(0)
        tuned = tuned_names(generator, TUNED_FROM)
        delta = {
            key: like_tuned(p, random) if key in tuned else torch.zeros_like(p)
            for key, p in generator.tunable().items()
        }
        values = sum(delta[key].numel() for key in tuned)
        rows = {codec: deltas.encode(delta, codec) for codec in ("fp16", "int8")}
        for coarse in (1.0, 2.0):
            rows[f"adaptive, step {coarse} rms"] = [
                deltas.EncodedTensor(key, tuple(v.shape), "adaptive", *table.adaptive_encode(v.numpy(), coarse))
                for key, v in delta.items()
            ]
        for codec, encoded in rows.items():
            wall, cpu = [], []
            for _ in range(repeats):
                start, worked = time.perf_counter(), time.process_time()
                deltas.decode(encoded, deltas.shapes_of(generator))
                wall.append(time.perf_counter() - start)
                cpu.append(time.process_time() - worked)
            size = sum(len(row.payload) for row in encoded)
            text += (
                f"| {name} | {values / 1e6:.1f} M | {codec} | {size / 1e3:.0f} | {1e3 * min(wall):.0f} "
                f"| {1e3 * statistics.median(wall):.0f} | {1e3 * min(cpu):.0f} |\n"
            )
            print(text.splitlines()[-1], flush=True)
    return text


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=15, help="of each decoding")
    print(decoding(parser.parse_args().repeats))
