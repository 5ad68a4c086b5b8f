"""The pass that is made alone before jobs begin together: it draws, and leaves everything as it was."""

from itertools import groupby

import pytest
import torch
from nvidia_files import random_generator

from pti_core.engine import Engine
from pti_core.first_pass import first_pass
from pti_core.presets import configure

QUICK = {"pivot.w_samples": 100, "pivot.steps": 4, "tuning.steps": 4}


@pytest.mark.parametrize("family", ["mobilestylegan", "stylegan2"])
@pytest.mark.parametrize("preset", ["demo", "paper"])
def test_it_draws_changes_no_weight_and_asks_for_no_gradient(tiny_generator, family, preset):
    generator = tiny_generator if family == "mobilestylegan" else random_generator(resolution=32)
    engine = Engine(generator, configure(preset, QUICK | {"precision": "half"}))
    before = {name: p.clone() for name, p in generator.state_dict().items()}
    engine.prepare()
    random, seen = torch.get_rng_state(), []

    def drawn(synthesis, given, image):
        weights = any(p.requires_grad for p in synthesis.parameters())
        seen.append((image.requires_grad, weights))

    hook = engine.drawing.synthesis.register_forward_hook(drawn)  # copies of the generator have it too
    try:
        shared = (engine.drawing, engine.config, engine.statistics, engine.judge, engine.lpips, engine.bases)
        first_pass(*shared, lambda: seen.append("check"))
    finally:
        hook.remove()
    steps = [list(draws) for checking, draws in groupby(seen, lambda one: one == "check") if not checking]
    assert [step for step in seen if step == "check"] == ["check"] * 3
    assert seen[0] == "check"
    search, tuning, costs = steps
    assert search == [(True, False)]  # of w and noise alone
    assert tuning.count((True, True)) == 4  # two steps: the image, and the point of the locality term
    assert tuning.count((False, False)) == 2  # where the untuned generator draws that point
    assert costs == [(True, True)]
    assert all(torch.equal(p, before[name]) for name, p in generator.state_dict().items())
    assert not any(p.requires_grad or p.grad is not None for p in generator.parameters())
    assert torch.equal(torch.get_rng_state(), random)
