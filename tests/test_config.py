"""Configuration: frozen, strict, hashed; presets and overrides."""

import pytest
from pydantic import ValidationError

from pti_core.config import RunConfig
from pti_core.presets import PRESETS, PresetError, configure


def test_paper_is_as_published():
    config = configure("paper")
    assert (config.pivot.steps, config.tuning.steps) == (450, 350)
    assert (config.pivot.lr, config.pivot.noise_lr) == (5e-3, 5e-3)
    assert (config.tuning.lr, config.tuning.lpips_weight, config.tuning.mse_weight) == (3e-4, 1.0, 1.0)
    assert (config.locality.enabled, config.locality.weight, config.locality.alpha) == (True, 0.1, 30.0)
    assert (config.pivot.mse_weight, config.pivot.noise_weight, config.pivot.noise_init) == (0.0, 1e5, "random")
    assert (config.pivot.w_noise, config.pivot.w_samples, config.locality.interval) == (0.05, 10_000, 1)


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_every_preset_is_valid_and_regularises_locality(preset):
    config = configure(preset)
    assert config.preset == preset
    assert config.locality.enabled


def test_fast_is_the_default():
    assert configure() == configure("fast")
    assert RunConfig().preset == "fast"


def test_overrides_by_dotted_name_win_over_the_preset():
    config = configure("demo", {"tuning.steps": 7, "mode": "multi", "measure.alphas": [10, 20]})
    assert (config.tuning.steps, config.mode, config.measure.alphas) == (7, "multi", (10.0, 20.0))


@pytest.mark.parametrize("name", ["tuning.step", "tunings.steps", "tuning", "", "tuning.steps.more"])
def test_an_unknown_setting_is_refused_with_the_list_of_settings(name):
    with pytest.raises(PresetError, match=r"tuning\.steps"):
        configure("fast", {name: 1})


def test_unknown_preset():
    with pytest.raises(PresetError, match=r"demo, fast, paper|paper, fast, demo"):
        configure("slow")


@pytest.mark.parametrize(
    ("name", "value"),
    [("tuning.steps", 0), ("tuning.lr", -1), ("locality.alpha", 0), ("measure.alphas", [30, -1]), ("pivot.space", "z")],
)
def test_values_out_of_range_are_refused(name, value):
    with pytest.raises(ValidationError):
        configure("fast", {name: value})


def test_frozen_and_strict():
    config = RunConfig()
    with pytest.raises(ValidationError):
        config.seed = 1
    with pytest.raises(ValidationError):
        RunConfig.model_validate({"sead": 1})


def test_digest_depends_on_all_that_decides_results_and_on_nothing_else():
    base = RunConfig()
    assert base.digest() == RunConfig.model_validate_json(base.model_dump_json()).digest()
    changed = [base.model_copy(update={"seed": 1}), base.model_copy(update={"mode": "multi"}), configure("paper")]
    digests = {c.digest() for c in [base, *changed]} | {base.digest(generator="abc")}
    assert len(digests) == 5
    assert base.model_copy(update={"batch": 1}).digest() == base.digest()


def test_the_preset_is_no_setting():
    with pytest.raises(PresetError, match="--preset"):
        configure("fast", {"preset": "paper"})
