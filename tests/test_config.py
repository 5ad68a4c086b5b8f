"""Configuration: frozen, strict, hashed; presets and overrides; docs/settings.md says what they are."""

import re
from pathlib import Path

import pytest
from pydantic import ValidationError

from flows.options import parse_setting
from pti_core.config import RunConfig
from pti_core.presets import PRESETS, PresetError, configure
from pti_core.settings_page import COMMAND, ENVIRONMENT, docs, settings, typed

ROOT = Path(__file__).parents[1]


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


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("tuning.step", "tuning.steps"),
        ("tunings.steps", "tuning.steps"),
        ("tuning.steps.more", "tuning.steps"),
        ("tuning.mse", "tuning.mse_weight"),
        ("measure", "measure.alphas, measure.z_samples"),
        ("steps", "pivot.steps, tuning.steps"),
        ("pivot.optimize_noise", "pivot.optimise_noise"),
        ("tuning.alpha", "locality.alpha, measure.alphas"),
        ("batch_size", "batch"),
    ],
)
def test_an_unknown_setting_is_refused_with_those_that_are_near(name, near):
    with pytest.raises(PresetError) as caught:
        configure("fast", {name: 1})
    said = f"setting {name!r} does not exist; did you mean {near}? (docs/settings.md has them all)"
    assert str(caught.value) == said


@pytest.mark.parametrize("name", ["", "iterations"])
def test_where_none_is_near_all_settings_are_listed(name):
    with pytest.raises(PresetError, match=r"does not exist; settings: preset, engine, .*tuning\.steps, .*z_samples$"):
        configure("fast", {name: 1})


def test_unknown_preset():
    with pytest.raises(PresetError, match=r"demo, fast, paper|paper, fast, demo"):
        configure("slow")


@pytest.mark.parametrize(
    ("name", "value"),
    [("tuning.steps", 0), ("tuning.lr", -1), ("locality.alpha", 0), ("measure.alphas", [30, -1]), ("pivot.space", "z")],
)
def test_values_out_of_range_are_refused(name, value):
    with pytest.raises(PresetError, match=rf"^{name}[.0-9]* \S.*: \w.*$"):  # `.` is no new line: one sentence
        configure("fast", {name: value})


def test_two_values_out_of_range_are_one_sentence_in_words_of_settings():
    with pytest.raises(PresetError) as caught:
        configure("fast", {"pivot.steps": "two", "measure.alphas": 15})
    reason = "Input should be a valid integer, unable to parse string as an integer"
    said = f"pivot.steps 'two': {reason}; measure.alphas 15: a list expected, such as [15,30]"
    assert str(caught.value) == said


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
def test_numbers_that_are_not_finite_are_refused(value):
    names = [name for name, _, default in settings(RunConfig()) if isinstance(default, float)]
    assert "tuning.lr" in names
    for name in names:
        with pytest.raises(PresetError, match=rf"^{name} \S+: [^;]*a finite number$"):
            configure("fast", {name: value})
    with pytest.raises(PresetError, match="should be a finite number"):
        configure("fast", {"measure.alphas": [30.0, value]})


@pytest.mark.parametrize("name", ["tuning.steps", "locality.alpha", "seed"])
def test_true_is_no_number(name):
    with pytest.raises(PresetError, match=rf"^{name} True: a number expected$"):
        configure("fast", {name: True})
    with pytest.raises(PresetError, match=r"^measure\.alphas \[30, True\]: a number expected$"):
        configure("fast", {"measure.alphas": [30, True]})
    assert configure("fast", {"pivot.optimise_noise": False}).pivot.optimise_noise is False


def test_an_alpha_that_no_float_holds_is_refused_before_any_work():
    with pytest.raises(PresetError, match=r"^locality\.alpha 1e\+300: Input should be less than or equal to 1000000$"):
        configure("fast", {"locality.alpha": 1e300})
    with pytest.raises(PresetError, match=r"^measure\.alphas \[1e\+300\]: numbers above 0, up to 1e6, expected$"):
        configure("fast", {"measure.alphas": [1e300]})


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


def test_every_setting_says_what_it_means():
    for name, field, _ in settings(RunConfig()):
        assert (field.description or "").endswith("."), name


def test_the_documentation_is_what_the_code_does():
    page = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
    assert page == docs(), f"docs/settings.md is not as the code is; `{COMMAND}` writes it anew"


def test_the_values_of_the_documentation_can_be_typed():
    for preset in ("fast", "demo", "paper"):
        shown = [f"{name}={typed(value)}" for name, _, value in settings(configure(preset)) if name != "preset"]
        typed_in = configure("noop", dict(parse_setting("--set", text) for text in shown))
        assert typed_in.model_copy(update={"preset": preset}) == configure(preset)


def test_every_environment_variable_of_the_code_is_documented():
    files = [path for part in ("pti_core", "flows", "tasks") for path in (ROOT / part).rglob("*.py")]
    texts = [path.read_text(encoding="utf-8") for path in files if path.name != "settings_page.py"]
    assert {name for text in texts for name in re.findall(r"PTI_[A-Z]\w*", text)} == set(ENVIRONMENT)
