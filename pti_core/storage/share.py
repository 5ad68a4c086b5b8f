"""Several processes on one run, without anything between them: each does the shards whose number is its own."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

_FORM: Final = re.compile(r"(\d{1,9})/(\d{1,9})")


class ShareError(ValueError):
    """No part of a run; the message says what is expected."""


@dataclass(frozen=True)
class Share:
    """The shards whose number divided by `count` leaves `index`."""

    index: int = 0
    count: int = 1

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    @property
    def whole(self) -> bool:
        """Whether these are all shards."""
        return self.count == 1

    def of(self, shards: Iterable[int]) -> list[int]:
        """Those of these shards that are its own, in their order."""
        return [shard for shard in shards if shard % self.count == self.index]


ALL: Final = Share()


def share_of(part: str | None, existing: str = "resume") -> Share:
    """`2/8` as a share; all shards for None. ShareError for anything else, and with `existing` "overwrite"."""
    if part is None:
        return ALL
    match = _FORM.fullmatch(part.strip())
    if match is None or int(match[1]) >= int(match[2]):
        raise ShareError(f"part {part!r}: I/N expected, with I from 0 to N-1, such as 0/8 for the first of eight")
    if existing == "overwrite":
        raise ShareError(
            f"part {part!r} with --overwrite (existing=overwrite): each of the processes would remove what the others "
            "have done; overwrite with one process, end it once it works, and start the parts without it"
        )
    return Share(int(match[1]), int(match[2]))


def others_left(run: str, share: Share, left: int) -> str:
    """What to say at the end of a part where `left` shards of the run are not done yet."""
    shards = "1 shard is" if left == 1 else f"{left:,} shards are"
    return f"part {share} is done; {shards} left to other parts, run {run}"
