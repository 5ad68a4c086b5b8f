"""Samples of a generator to train on: z, truncation and noise maps at random, several views of each image."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from pti_core.encoder.augment import augment
from pti_core.generators.base import Generator
from pti_core.machine.parallel import in_parallel, on_idle_cores
from pti_core.sampling import ImageRandom, WStatistics, sample_w, seed_for

CHUNK = 8  # images drawn together
WINDOW = 32  # chunks whose results are in memory beside what is kept
LEAST_PSI = 0.5


def draw(
    generator: Generator, statistics: WStatistics, numbers: Sequence[int], purpose: str, seed: int
) -> tuple[Tensor, Tensor]:
    """Samples by number: w `[N, w_dim]` and images `[N, C, H, W]`, clipped to [-1, 1].

    w = w_avg + psi (w_z - w_avg) with psi uniform in [0.5, 1], a random class where there are any, fresh noise maps.
    Every sample has a random stream of its own.
    """
    device = statistics.w_avg.device
    random = ImageRandom([seed_for(str(number), purpose, seed) for number in numbers], device)
    psi = torch.stack([torch.rand(1, generator=g) for g in random.generators]).to(device) * (1 - LEAST_PSI) + LEAST_PSI
    w = statistics.w_avg + psi * (sample_w(generator, random) - statistics.w_avg)

    def maps(own: torch.Generator) -> list[Tensor]:
        return [torch.randn(1, *shape, generator=own) for shape in generator.noise_shapes]

    of_each = on_idle_cores(maps, random.generators, device)  # a GPU would wait for them: at 1024 five million each
    noise = [torch.stack(of_all).to(device) for of_all in zip(*of_each, strict=True)]
    with torch.no_grad():
        images = generator.synthesis(w[:, None].expand(-1, generator.num_ws, -1), noise=noise)
    return w, images.clamp(-1, 1)


def views(images: Tensor, numbers: Sequence[int], view: int, purpose: str, seed: int) -> Tensor:
    """View `view` of samples `[N, C, H, W]`; view 0 is the image as it was drawn."""
    if view == 0:
        return images
    streams = [torch.Generator().manual_seed(seed_for(f"{n} {view}", f"{purpose} view", seed)) for n in numbers]
    return torch.stack([augment(image, rng) for image, rng in zip(images, streams, strict=True)])


def sampled_features(
    generator: Generator,
    statistics: WStatistics,
    features_of: Callable[[Tensor], Tensor],
    numbers: Sequence[int],
    view_count: int,
    purpose: str,
    seed: int,
) -> Iterator[tuple[Tensor, Tensor]]:
    """For a few samples at a time, in order: w `[n, w_dim]`, and `features_of` their views `[n, views, ...]`.

    Both are on the CPU, features in float16. On a CPU every core draws. Raises Stopped where the process is told to
    end.
    """

    def work(chunk: Sequence[int], check: Callable[[], None]) -> tuple[Tensor, Tensor]:
        check()
        w, images = draw(generator, statistics, chunk, purpose, seed)
        with torch.no_grad():
            found = [features_of(views(images, chunk, view, purpose, seed)) for view in range(view_count)]
        return w.cpu(), torch.stack(found, dim=1).half().cpu()

    chunks = [numbers[i : i + CHUNK] for i in range(0, len(numbers), CHUNK)]
    for i in range(0, len(chunks), WINDOW):  # jobs keep their results until the last is taken
        yield from in_parallel(work, chunks[i : i + WINDOW], statistics.w_avg.device)
