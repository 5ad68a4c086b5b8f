"""Weights into a generator, each name, shape and value checked before any of them is taken."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from pti_core.generators.checkpoints.errors import CheckpointError

MAX_NAMED = 3  # tensors named in a message


def fill(
    generator: nn.Module, shapes: Mapping[str, tuple[int, ...]], read: Callable[[str], Tensor], source: str
) -> None:
    """Give a generator (perhaps on the meta device) all its weights, as float32; eval mode, no gradients.

    `shapes` says what the file has, before anything of it is read; `read` gives one tensor at a time, so that a
    half-precision or a huge file is never there twice. Raises CheckpointError for a missing or unknown name, a wrong
    shape, an integer tensor, NaN or infinity.
    """
    expected = generator.state_dict()
    wrong = [
        f"{name} ({list(shapes[name])} instead of {list(expected[name].shape)})"
        for name in expected
        if name in shapes and tuple(shapes[name]) != tuple(expected[name].shape)
    ]
    _refuse(source, "lacks", [name for name in expected if name not in shapes])
    _refuse(source, "has the unknown", [name for name in shapes if name not in expected])
    _refuse(source, "has the wrong shape for", wrong)
    state, bad = {}, []
    for name in expected:
        value = read(name)
        if not value.is_floating_point():
            raise CheckpointError(f"{source}: {name} is {value.dtype}, floating point expected; the file is damaged")
        value = value.to(torch.float32, memory_format=torch.contiguous_format)
        if value.numel() and not bool(torch.stack(value.aminmax()).isfinite().all()):  # NaN is its own least and most
            bad.append(name)
        state[name] = value
    _refuse(source, "has NaN or infinite values in", bad, "it is the result of a training that failed, or damaged")
    generator.load_state_dict(state, assign=True)
    generator.eval().requires_grad_(False)


def _refuse(
    source: str, problem: str, names: list[str], why: str = "it is not a generator of this architecture, or damaged"
) -> None:
    """The one sentence for tensors that do not fit, if there are any."""
    if names:
        more = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
        listed = ", ".join(name[:80] for name in names[:MAX_NAMED]) + more
        raise CheckpointError(f"{source}: {problem} {listed}; {why}, fetch or convert it again")
