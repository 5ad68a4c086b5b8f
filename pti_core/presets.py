"""Named configurations. `paper` is as published; `fast` and `demo` say here what they change and why."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from pti_core.config import Preset, RunConfig

_QUICK: dict[str, Any] = {
    "precision": "auto",
    "pivot.w_noise": 0.0,
    "pivot.mse_weight": 0.1,
    "pivot.noise_weight": 1e4,
    "tuning.lr": 1.5e-2,
    "tuning.lr_rampup": 0.1,
    "tuning.lr_rampdown": 0.6,
    "tuning.beta1": 0.8,
    "tuning.beta2": 0.95,
    "tuning.pull": 0.2,
    "tuning.basis": "inputs",
    "tuning.from_resolution": 8,
    "tuning.mse_weight": 4.0,
    "locality.weight": 0.2,
    "locality.interval": 3,
}

PRESETS: dict[Preset, dict[str, Any]] = {
    # Roich et al. 2021, section 4 and its appendix: 450 steps for the pivot from random noise at 5e-3, at most 350 of
    # tuning at 3e-4, locality at every step with lambda_R = 0.1 and alpha = 30. What is not named here is a default of
    # `config`, whose numbers are the paper's, and for the projector those of StyleGAN2. What the authors' program does
    # otherwise: docs/paper.md.
    "paper": {"pivot.start": "w_avg", "pivot.noise_init": "random", "pivot.lr": 5e-3, "pivot.noise_lr": 5e-3},
    # A ninth of the steps. Pivot: no exploration noise, which pays only over hundreds of steps; a little MSE, so that
    # colours are right from the start. Tuning: a learning rate 50 times the paper's that rises, and then falls nearly
    # to zero, with less momentum. Adam works along the directions that a layer's inputs vary in (`bases`), and after
    # each step these go back towards the old weights, the more the rest of W sees of them: a fifth of the way where it
    # sees the mean (`TuningConfig.pull`). The drift at w_z is 0.4 of what 350 small steps leave, and locality needs
    # every other step only. MSE counts four times: its gradient does not fade near the target as that of LPIPS does,
    # which is worth nearly three decibels. The 4x4 input, which all pictures share, stays. Drawing is in half precision
    # where that is faster and as good. What each brings: docs/speed.md.
    "fast": {
        **_QUICK,
        "pivot.steps": 32,
        "tuning.steps": 60,
        "tuning.stop_lpips": 0.0075,
        "locality.interval": 2,
    },
    # A dozen images in a minute or two on two cores: `fast` with fewer steps, and locality at every third.
    "demo": {
        **_QUICK,
        "pivot.steps": 32,
        "tuning.steps": 36,
        "tuning.stop_lpips": 0.012,
        "measure.z_samples": 1,
    },
    # Everything but the method: to see what listing, reading, tables and orchestration cost.
    "noop": {"engine": "noop", "batch": 64},
}


class PresetError(ValueError):
    """A preset or an override that does not exist or does not fit."""


def configure(preset: str = "fast", overrides: Mapping[str, Any] | None = None) -> RunConfig:
    """The configuration of a preset with single values replaced by dotted name, e.g. `{"tuning.steps": 100}`.

    Raises PresetError, with one sentence, for an unknown preset or name and for a value out of its range.
    """
    if preset not in PRESETS:
        raise PresetError(f"preset {preset!r}: one of {', '.join(PRESETS)} expected")
    content: dict[str, Any] = RunConfig().model_dump()
    content["preset"] = preset
    if "preset" in (overrides or {}):
        raise PresetError("setting 'preset' is chosen by its own option, --preset (preset=NAME)")
    for name, value in {**PRESETS[preset], **(overrides or {})}.items():
        *path, last = name.split(".")
        place = content
        for key in path:
            place = place.get(key, {}) if isinstance(place, dict) else {}
        if not isinstance(place, dict) or last not in place or isinstance(place[last], dict):
            raise PresetError(_unknown(name, _names(RunConfig().model_dump())))
        place[last] = value
    try:
        return RunConfig.model_validate(content)
    except ValidationError as error:
        raise PresetError(in_one_sentence(error)) from None


_WANTED = {"tuple_type": "a list expected, such as [15,30]"}  # pydantic's words are about Python


def in_one_sentence(error: ValidationError) -> str:
    """Which settings have which values, and why not; pydantic's own message has several lines for each."""
    # Without a place it is about several settings, and its message names them; the input is all of them.
    return "; ".join(
        f"{'.'.join(map(str, d['loc']))} {d.get('input')!r}: {_WANTED.get(d['type'], d['msg'])}"
        if d["loc"]
        else d["msg"].removeprefix("Value error, ")
        for d in error.errors()
    )


def _names(content: Mapping[str, Any], prefix: str = "") -> list[str]:
    """The dotted names of all single values of a dumped configuration."""
    names = []
    for key, value in content.items():
        names += _names(value, f"{prefix}{key}.") if isinstance(value, dict) else [f"{prefix}{key}"]
    return names


def _unknown(name: str, names: Sequence[str]) -> str:
    """One sentence about a name that is no setting: what is near it, or all there is."""
    if near := _near(name, names):
        return f"setting {name!r} does not exist; did you mean {', '.join(near)}? (docs/settings.md has them all)"
    return f"setting {name!r} does not exist; settings: {', '.join(names)}"


def _near(name: str, names: Sequence[str]) -> list[str]:
    """Settings that may be meant: where one name begins with the other, or nearly alike, or alike but for the section.

    None are of an empty name.
    """
    if begun := [known for known in names if name and (known.startswith(name) or name.startswith(known))]:
        return begun
    if close := difflib.get_close_matches(name, names, cutoff=0.8):
        return close
    last = name.rpartition(".")[2]
    return [known for known in names if difflib.get_close_matches(last, [known.rpartition(".")[2]], cutoff=0.8)]
