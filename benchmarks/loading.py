"""How long a StyleGAN2 config-f at 1024 (30 M parameters, random weights) takes to load and to draw an image.

python -m benchmarks.loading
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from flows.errors import one_sentence
from pti_core.generators.checkpoints import load_generator
from pti_core.generators.checkpoints.convert import write_generator
from pti_core.generators.stylegan2 import StyleGAN2

FILES = {"own safetensors": "own.safetensors", "rosinality": "training.pt", "state dict": "state.pth"}


def seconds(work: Callable[[], object], repeats: int) -> float:
    """The median of some calls."""
    taken = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def main() -> None:
    """Write the generator in each format, load it, draw one image: a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3, help="of each; the median counts")
    repeats = parser.parse_args().repeats
    torch.manual_seed(0)
    generator = StyleGAN2(512, 0, 512, 1024).eval().requires_grad_(False)
    parameters = sum(p.numel() for p in generator.parameters())
    print(f"{parameters / 1e6:.1f} M parameters, {torch.get_num_threads()} threads\n")
    print("| what | seconds |\n| --- | ---: |")
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        for name, file in FILES.items():
            path = Path(folder) / file
            write_generator(generator, path)
            taken = seconds(partial(load_generator, str(path)), repeats)
            print(f"| load, {name} | {taken:.2f} |")
        z = torch.randn(1, generator.z_dim)
        print(f"| draw an image | {seconds(partial(generator, z), repeats):.2f} |")


if __name__ == "__main__":
    with one_sentence():
        main()
