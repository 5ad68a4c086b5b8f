"""Directions as a person writes them: `pca:0`, `sefa:3:layers=coarse`, `smile.npy`, `learned:scores.csv`, `visible`."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Final

import torch

from pti_core.addresses import refusal
from pti_core.directions.direction import Direction, DirectionError, make_direction
from pti_core.directions.factors import pick, principal_components, style_factors, visible_directions
from pti_core.directions.files import choose, read_vectors
from pti_core.directions.learned import Learned
from pti_core.engine import Engine

OPTIONS: Final = ("layers", "name", "key")
VISIBLE: Final = "visible"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,79}")
RESERVED: Final = ("unedited", "done")  # folders beside those of the directions


@dataclass(frozen=True)
class Spec:
    """A direction that is asked for."""

    text: str
    source: str  # `pca:0`, `sefa:3`, `visible`, `learned:TABLE`, or a file
    layers: str = "all"
    name: str | None = None
    key: str | None = None  # of an array in the file


def parse(text: str) -> Spec:
    """`SOURCE[:layers=...][:name=...][:key=...]`. DirectionError for another option, an address with a secret."""
    source, options = text.strip(), {}
    if refused := refusal("direction", source.removeprefix("learned:")):
        raise DirectionError(refused)
    while match := re.fullmatch(r"(.+):(\w+)=([^:]*)", source):
        source, option, value = match.groups()
        if option not in OPTIONS or not value:
            known = ", ".join(f":{name}=..." for name in OPTIONS)
            raise DirectionError(f"direction {text!r}: option {option!r} with value {value!r}; {known} expected")
        options[option] = value
    if not source:
        raise DirectionError(f"direction {text!r}: pca:K, sefa:K, visible, learned:TABLE or a file expected")
    return Spec(text, source, **options)


def resolve(texts: Sequence[str], engine: Engine, learn: Callable[[str], Learned]) -> tuple[list[Direction], list[str]]:
    """The directions of all texts, with names of their own, and remarks for a person.

    `learn` makes a boundary of a table of scores, given its address. Raises DirectionError where one does not exist,
    does not fit the generator, or two have the same name.
    """
    found: list[Direction] = []
    remarks: list[str] = []
    for text in texts:
        spec = parse(text)
        for direction in _directions(spec, engine, learn, remarks):
            name = spec.name or direction.name + ("" if spec.layers == "all" else f"-{spec.layers}")
            if not _NAME.fullmatch(name) or name in RESERVED:
                rule = f"letters, digits, '.', '_', '+' and '-' expected, and not {' or '.join(RESERVED)}"
                raise DirectionError(f"direction {text!r}: name {name!r}; {rule}; choose one with :name=NAME")
            if name in (other.name for other in found):
                raise DirectionError(f"two directions have the name {name!r}; give one another with :name=NAME")
            found.append(replace(direction, name=name))
    if not found:
        raise DirectionError("no direction; pca:K, sefa:K, visible, learned:TABLE or a file expected")
    return found, remarks


def _directions(spec: Spec, engine: Engine, learn: Callable[[str], Learned], remarks: list[str]) -> list[Direction]:
    generator, statistics = engine.generator, engine.statistics
    kind, _, rest = spec.source.partition(":")
    if kind in ("pca", "sefa") and not rest.isdecimal():
        raise DirectionError(f"direction {spec.text!r}: a number from 0 expected, as in '{kind}:0'")
    if kind == "pca":
        direction = pick(principal_components(statistics, generator.w_dim), kind, int(rest))
        return [make_direction(direction.name, direction.vector, generator, statistics, spec.layers)]
    if kind == "sefa":  # what its layers are decides the direction itself
        return [pick(style_factors(generator, statistics, int(rest) + 1, spec.layers), kind, int(rest))]
    if spec.source == VISIBLE:
        visible = visible_directions(generator, statistics, engine.lpips)
        return [make_direction(d.name, d.vector, generator, statistics, spec.layers) for d in visible]
    if kind == "learned":
        learned = learn(rest)
        remarks.append(learned.remark)
        name = f"learned-{_stem(rest)}"
        return [make_direction(name, learned.vector, generator, statistics, spec.layers)]
    allowed = {(generator.w_dim,), (1, generator.w_dim), (generator.num_ws, generator.w_dim)}

    def fits(vector: torch.Tensor) -> bool:
        return tuple(vector.shape) in allowed

    vector = choose(read_vectors(spec.source), spec.source, spec.key, fits)
    return [make_direction(spec.key or _stem(spec.source), vector, generator, statistics, spec.layers)]


def _stem(uri: str) -> str:
    """A file's name without its ending, as a name."""
    return re.sub(r"[^A-Za-z0-9._+-]+", "_", PurePosixPath(uri).stem).strip("._") or "direction"
