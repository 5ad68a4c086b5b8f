"""What goes into the engine and what comes out: an image; its pivot, delta and measures, or why there are none."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, get_args

from torch import Tensor

from pti_core.deltas import EncodedTensor
from pti_core.machine.device import reason_of
from pti_core.pivot import Pivots

Measures = dict[str, float | None]
Stage = Literal["pivot", "tuned", "stored"]
STAGES: Final[tuple[Stage, ...]] = get_args(Stage)
"""In the order in which they come."""


@dataclass(frozen=True)
class Target:
    """An image to invert."""

    image_id: str
    group: str  # images of a group share a generator in mode "multi"
    image: Tensor  # [C, H, W] in [-1, 1], the generator's resolution


@dataclass(frozen=True)
class Inversion:
    """A finished image."""

    image_id: str
    owner: str  # of the delta: the image, or its group
    w: Tensor  # [slots, w_dim]
    noise: bytes | None  # encoded; None where there are none
    measures: dict[Stage, Measures]
    shot: bytes | None  # the tuned image to look at (`images.shot`); None where there is none
    pivot_steps: int
    tuning_steps: int
    pivot_seconds: float  # the image's share of its batch
    tuning_seconds: float
    seed: int


@dataclass(frozen=True)
class Delta:
    """The encoded weight delta of one image or group."""

    owner: str
    tensors: list[EncodedTensor]


@dataclass(frozen=True)
class Failure:
    """An image that could not be inverted."""

    image_id: str
    stage: str
    error: str
    message: str
    permanent: bool

    @classmethod
    def out_of_memory(cls, target: Target, stage: str, error: Exception) -> Failure:
        """An image that does not fit into memory: alone on a GPU, on a CPU beside others."""
        message = (
            f"image_id {target.image_id!r}: out of memory; a smaller generator or a larger device has room for it "
            f"({reason_of(error)})"
        )
        return cls(target.image_id, stage, type(error).__name__, message, permanent=False)


@dataclass(frozen=True)
class Found:
    """An image whose pivot is found and whose generator is not tuned yet."""

    target: Target
    pivot: Pivots  # its noise maps as the tables hold them, so that tuning sees what a reader gets
    noise: bytes
    lpips: float  # of the search's last step
    seconds: float


Result = Inversion | Delta | Failure
