"""docs/settings.md, made from the configuration itself: what is set, to what, within which range, and what it means."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from pti_core.config import RunConfig
from pti_core.presets import PRESETS, configure

COMMAND = "python -m pti_core.settings_page > docs/settings.md"
COLUMNS = ("fast", "demo", "paper")
"""Presets with a column; the command's own default first."""

ENVIRONMENT = {
    "PTI_DEVICE": "Device to work on, as torch names it: `cpu`, `cuda:1`. Without it the accelerator that torch finds, "
    "or the CPU.",
    "PTI_CORES": "CPU cores that a process uses at most, 1 or more, where several share a machine. Without it all that "
    "it may run on (`taskset` and containers' CPU sets count).",
    "PTI_CACHE": "Folder of fetched generators and trained encoders. Without it `pti` in the user's cache folder "
    "(`~/.cache/pti` on Linux).",
    "PTI_TRACEBACK": "Anything but nothing: an error of the `pti` command, of a script, a benchmark or in the log of a "
    "worker's run is shown with its traceback, not as one sentence.",
}
"""Environment variables of the program's own, and what each means."""

_INTRODUCTION = """\
# Settings

Each setting has a dotted name. A preset gives it its first value, and `--set NAME=VALUE` another, as often as wanted:

    pti run photos/ --output out/photos --preset fast --set tuning.steps=200 --set 'measure.alphas=[15,60]'

VALUE is JSON (`0.01`, `1e-3`, `true`, `[15,60]`) or a word (`w_avg`). A name that does not exist, or a value out of its
range, is one sentence before any work begins. A deployment takes the same as its parameter `settings`:
`{"tuning.steps": 200}`. `mode`, `seed` and `image.convert` have options of their own too (`--mode`, `--seed`,
`--convert`); where both are given, `--set` wins.

All but `batch` decide results, and so the name of a run: with another value a new run begins beside the old one,
but `--extend` is refused where only settings tell it from a run that is there. A run keeps the `batch` that it began
with, or got by `--overwrite`.
[speed.md](speed.md) says what the values of `fast` and `demo` bring, [paper.md](paper.md) how `paper` differs from the
authors' program. A test keeps this page as the code is; what writes it anew:

    COMMAND
"""
_KINDS: dict[Any, str] = {int: "integer", float: "number", tuple[float, ...]: "list of numbers"}
_BOUNDS = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}


def settings(config: BaseModel, prefix: str = "") -> Iterator[tuple[str, FieldInfo, Any]]:
    """Every single setting of a configuration: its dotted name, what is declared of it, and its value."""
    for name, field in type(config).model_fields.items():
        value = getattr(config, name)
        if isinstance(value, BaseModel):
            yield from settings(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", field, value


def typed(value: Any) -> str:
    """A value as `--set` takes it: JSON without spaces, or a word."""
    if isinstance(value, str):
        return value
    return json.dumps(value, separators=(",", ":")).replace(".0,", ",").replace(".0]", "]").removesuffix(".0")


def allowed(field: FieldInfo) -> str:
    """The values that a setting takes, in words."""
    kind = field.annotation
    if kind is bool or get_origin(kind) is Literal:
        return ", ".join(f"`{typed(value)}`" for value in get_args(kind) or (False, True))
    rules = [(sign, getattr(rule, at, None)) for rule in field.metadata for at, sign in _BOUNDS.items()]
    bounds = [f"{sign} {bound:g}" for sign, bound in rules if bound is not None]
    return f"{_KINDS[kind]} {', '.join(bounds)}".strip()


def docs() -> str:
    """The whole page, as Markdown."""
    configs = [configure(preset) for preset in COLUMNS]
    values = [{name: value for name, _, value in settings(config)} for config in configs]
    heads = ["name", f"`{COLUMNS[0]}` (default)", *(f"`{preset}`" for preset in COLUMNS[1:]), "allowed", "meaning"]
    sections: dict[str, list[str]] = {}
    for name, field, _ in settings(configs[0]):
        shown = [f"`{typed(column[name])}`" for column in values]
        cells = [f"`{name}`", *shown, allowed(field), (field.description or "").replace("|", "\\|")]
        sections.setdefault(name.rpartition(".")[0], []).append(f"| {' | '.join(cells)} |")
    top = sections.pop("")
    lines = [_INTRODUCTION.replace("COMMAND", COMMAND)]
    for section, rows in sections.items():
        about = type(getattr(configs[0], section)).__doc__ or ""
        lines += [f"## {section.capitalize()}", "", about, "", *_table(heads, rows)]
    lines += ["## Top level", "", RunConfig.__doc__ or "", "", *_table(heads, top)]
    noop = ", ".join(f"`{name}={typed(value)}`" for name, value in PRESETS["noop"].items())
    lines += [f"The fourth preset, `noop`, is {noop} and nothing else: the cost of a run without the method.", ""]
    variables = [f"| `{name}` | {meaning} |" for name, meaning in ENVIRONMENT.items()]
    lines += ["## Environment variables", "", "They say where the work is done and how errors are shown.", ""]
    return "\n".join([*lines, *_table(["name", "meaning"], variables)[:-1]]) + "\n"


def _table(heads: list[str], rows: list[str]) -> list[str]:
    return [f"| {' | '.join(heads)} |", f"|{' --- |' * len(heads)}", *rows, ""]


if __name__ == "__main__":
    print(docs(), end="")
