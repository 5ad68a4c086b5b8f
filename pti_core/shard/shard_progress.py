"""How far a shard is, as tasks tell it and terminals and logs show it. Without torch, which takes seconds to import."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pti_core.progress import Progress

PREPARING: Final = "preparing the generator"
"""What is done before the first step of the first image: at 1024 pixels it takes a minute or two on a CPU."""

PICTURES: Final = -1
"""In place of a shard's number: pictures of a whole run, which are drawn when its shards are done."""


@dataclass(frozen=True)
class ShardProgress:
    """How far a shard is; `now` is what the engine is doing, None between parts; `doing` is any other work in words."""

    shard: int  # or `PICTURES`
    done: float  # images, with the share of those in work
    total: int
    now: Progress | None
    doing: str | None = None
    unit: str = "image"  # or `PERCENT`, of work on no shard

    @property
    def words(self) -> str:
        """What is being done, for a person; empty where it is not known."""
        return self.doing or (f"{self.now.stage} LPIPS {self.now.lpips:.3f}" if self.now else "")


OnShardProgress = Callable[[ShardProgress], None]


def drawing(what: str, done: int, total: int) -> ShardProgress:
    """Pictures of `total` images, for the report, say: `drawing the report, image 5 of 48` once four are there."""
    doing = f"drawing the {what}, image {done + 1:,} of {total:,}" if done < total else f"writing the {what}"
    return ShardProgress(PICTURES, done, total, None, doing)
