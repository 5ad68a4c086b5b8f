"""Randomness that belongs to an image, and the statistics of W."""

import pytest
import torch

from pti_core.sampling import ImageRandom, sample_w, seed_for, w_statistics


def test_seeds_differ_by_image_purpose_and_seed_and_never_change():
    seeds = {seed_for(n, p, s) for n in ("a", "b") for p in ("pivot", "tuning") for s in (0, 1)}
    assert len(seeds) == 8
    assert all(0 <= s < 2**63 for s in seeds)
    assert seed_for("faces/01.png", "pivot", 0) == 4413782609846997657


def test_a_batch_draws_what_its_images_draw_alone():
    together = ImageRandom([1, 2, 3])
    alone = [ImageRandom([s]) for s in (1, 2, 3)]
    for _ in range(3):
        torch.testing.assert_close(together.randn(4, 5), torch.cat([r.randn(4, 5) for r in alone]))
    assert together.randint(10).tolist() == [r.randint(10).item() for r in alone]


def test_w_statistics_against_their_definitions(tiny_generator):
    statistics = w_statistics(tiny_generator, 500)
    w = statistics.samples
    assert w.shape == (500, tiny_generator.w_dim)
    torch.testing.assert_close(statistics.w_avg, w.mean(0))
    assert statistics.w_std == pytest.approx(((w - w.mean(0)) ** 2).sum(1).mean().sqrt().item(), rel=1e-5)
    pairs = torch.cdist(w.double(), w.double())
    assert statistics.mean_distance == pytest.approx(pairs[~torch.eye(500, dtype=bool)].mean().item(), rel=0.05)
    torch.testing.assert_close(w_statistics(tiny_generator, 500).samples, w)


def test_sample_w_is_the_mapping_of_the_streams_z(tiny_generator):
    w = sample_w(tiny_generator, ImageRandom([5, 6]))
    z = ImageRandom([5, 6]).randn(tiny_generator.z_dim)
    torch.testing.assert_close(w, tiny_generator.mapping(z)[:, 0])
