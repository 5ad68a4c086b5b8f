"""How the learning rate of tuning rises and falls, and when it ends."""

import pytest

from pti_core.config import TuningConfig
from pti_core.falling import FallingRate
from pti_core.pivot import learning_rate


def factors(lpips, **config):
    """All factors of a tuning in which the image has these LPIPS, one a step; until it ends."""
    rate, found = FallingRate(TuningConfig(**config)), []
    for step, value in enumerate(lpips):
        factor = rate.factor(step, value)
        if factor is None:
            break
        found.append(factor)
    return found


def test_falls_at_the_end_as_the_cosine_of_the_projector_does_but_for_its_last_tenth():
    found = factors([1.0] * 40, steps=26, lr_rampdown=18 / 26, stop_lpips=0.1)
    assert found == pytest.approx([learning_rate(step, 28, 0.0, 20 / 28) for step in range(26)])
    assert 0 < found[-1] < 0.06


def test_an_image_that_is_good_early_falls_early_in_the_same_proportion():
    found = factors([1.0] * 10 + [0.05] * 40, steps=100, lr_rampdown=0.5, stop_lpips=0.1)
    assert found[:11] == [1.0] * 11
    assert len(found) == 20
    assert sorted(found, reverse=True) == found
    assert found[-1] < 0.1


def test_the_fall_goes_on_where_the_image_gets_worse_again():
    assert len(factors([1.0] * 10 + [0.05] + [0.2] * 40, steps=100, lr_rampdown=0.5, stop_lpips=0.1)) == 20


def test_without_a_fall_it_ends_at_once_as_in_the_paper():
    assert factors([1.0] * 5 + [0.1] * 40, steps=30, lr_rampdown=0.0, stop_lpips=0.1) == [1.0] * 5
    assert factors([1.0] * 40, steps=30, lr_rampdown=0.0, stop_lpips=0.1) == [1.0] * 30
    assert factors([0.1] * 40, steps=30, lr_rampdown=0.6, stop_lpips=0.1) == []


def test_a_fall_over_all_steps_starts_with_the_first():
    found = factors([1.0] * 40, steps=10, lr_rampdown=1.0, stop_lpips=0.1)
    assert (len(found), found[0]) == (10, 1.0)
    assert found[-1] < 0.1


def test_rises_linearly_and_then_goes_on_as_without_a_rise():
    shape = {"steps": 20, "lr_rampdown": 0.6, "stop_lpips": 0.1}
    found, without = factors([1.0] * 40, lr_rampup=0.2, **shape), factors([1.0] * 40, **shape)
    assert found[:4] == pytest.approx([0.25, 0.5, 0.75, 1.0])
    assert found[4:] == without[4:]


def test_a_rise_longer_than_the_plateau_is_multiplied_with_the_fall():
    found = factors([1.0] * 40, steps=10, lr_rampup=1.0, lr_rampdown=1.0, stop_lpips=0.1)
    assert len(found) == 10
    assert max(found) < 1.0
    assert found[0] == pytest.approx(0.1)
