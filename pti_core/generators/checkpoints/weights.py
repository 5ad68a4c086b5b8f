"""Weights into a generator, each name, shape and value checked before any of them is taken."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pti_core.generators.base import Generator
from pti_core.generators.checkpoints.errors import CheckpointError

MAX_NAMED = 3  # tensors named in a message


@dataclass(frozen=True)
class Read:
    """What a reader makes of a file."""

    format: str
    generator: Generator
    notes: dict[str, str] = field(default_factory=dict)  # origin, licence: whatever the file says of itself


def fill(generator: Generator, shapes: Mapping[str, tuple[int, ...]], read: Callable[[str], Tensor]) -> None:
    """Give a generator (perhaps on the meta device) all its weights, as float32; eval mode, no gradients.

    `shapes` says what the file has, before anything of it is read; `read` gives one tensor at a time, in memory of
    its own, so that a half-precision or a huge file is never there twice. Raises CheckpointError for a missing or
    unknown name, a wrong shape, an integer tensor, NaN or infinity.
    """
    expected = generator.state_dict()  # type: ignore[attr-defined]
    wrong = [
        f"{name} ({list(shapes[name])} instead of {list(expected[name].shape)})"
        for name in expected
        if name in shapes and tuple(shapes[name]) != tuple(expected[name].shape)
    ]
    _refuse("it lacks", [name for name in expected if name not in shapes])
    _refuse("it has the unknown", [name for name in shapes if name not in expected])
    _refuse("it has the wrong shape for", wrong)
    state, bad = {}, []
    for name in expected:
        value = read(name)
        if not value.is_floating_point():
            raise CheckpointError(f"{name} is {value.dtype}, floating point expected; the file is damaged")
        value = value.to(torch.float32).contiguous()
        if value.numel() and not bool(torch.stack(value.aminmax()).isfinite().all()):  # NaN is its own least and most
            bad.append(name)
        state[name] = value
    _refuse("it has NaN or infinite values in", bad, "it is the result of a training that failed, or damaged")
    generator.load_state_dict(state, assign=True)  # type: ignore[attr-defined]
    generator.eval().requires_grad_(False)  # type: ignore[attr-defined]


def _refuse(problem: str, names: list[str], why: str = "it is no generator of this architecture, or damaged") -> None:
    """The one sentence for tensors that do not fit, if there are any."""
    if names:
        more = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
        listed = ", ".join(name[:80] for name in names[:MAX_NAMED]) + more
        raise CheckpointError(f"{problem} {listed}; {why}, fetch or convert it again")
